// The vectors that all kernels use: LANES f32 values, loads from f16 and f32, exp and GELU to f32 rounding.
// One source, compiled for AVX-512 and for AVX2 with FMA and F16C (build.sh).
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __AVX512F__
#define LANES 16
#define TILE_ROWS 12  // rows × columns of a product kept in registers: 12 × 32 takes 24 of 32
#define EVEN {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}
#else
#define LANES 8
#define TILE_ROWS 6  // 6 × 16 takes 12 of 16
#define EVEN {0, 2, 4, 6, 8, 10, 12, 14}
#endif
#define TILE_COLUMNS (2 * LANES)

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float loose_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef _Float16 half;

INLINE vec load(const float *p) { return *(const loose_vec *)p; }
INLINE void store(float *p, vec v) { *(loose_vec *)p = v; }
INLINE vec all(float value) { return value - (vec){0}; }
INLINE vec bits(ivec v) { return (vec)v; }

// load_half: LANES f16 values, exactly. load_byte: LANES bytes as f32. any_reaches: whether any element of v is at least `low`.
#ifdef __AVX512F__
INLINE vec load_half(const half *p) { return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vec load_byte(const int8_t *p) {
  return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE vec max_of(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE int any_reaches(vec v, float low) { return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(low), _CMP_GE_OQ) != 0; }
#else
INLINE vec load_half(const half *p) { return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vec load_byte(const int8_t *p) {
  return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE vec max_of(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE int any_reaches(vec v, float low) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(low), _CMP_GE_OQ)) != 0;
}
#endif

INLINE float one_half(const half *p) {
  uint16_t value;
  __builtin_memcpy(&value, p, 2);
  return _cvtsh_ss(value);
}

// Sums of neighbours: a0 + a1, a2 + a3, …, then b's.
INLINE vec add_pairs(vec a, vec b) {
  const ivec even = EVEN;
  return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
}

// The sum of each of LANES vectors; v is overwritten.
INLINE vec sums_of(vec *v) {
#pragma GCC unroll 4
  for (int n = LANES / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) v[i] = add_pairs(v[2 * i], v[2 * i + 1]);
  return v[0];
}

INLINE float sum_of(vec v) {
  for (int n = LANES / 2; n > 0; n /= 2) v = add_pairs(v, v);
  return v[0];
}

// Transposes LANES vectors as a square matrix: each step exchanges elements n apart between vectors n apart.
INLINE void transpose(vec *v) {
  const ivec lane = (ivec)EVEN / 2;
#pragma GCC unroll 4
  for (int n = LANES / 2; n > 0; n /= 2) {
    // For each element of the lower and of the upper vector: its index among the pair's elements.
    const ivec has = (lane & n) != 0, low = (lane & ~n) + (has & LANES), high = (lane | n) + (has & LANES);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & n)) {
        vec a = v[i], b = v[i + n];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + n] = __builtin_shuffle(a, b, high);
      }
  }
}

INLINE float highest_of(vec v) {
  float highest = v[0];
  for (int i = 1; i < LANES; i++) highest = v[i] > highest ? v[i] : highest;
  return highest;
}

// exp(x) for x ≤ 88, off by at most 2 units in the last place; 0 below −87.
// 2ⁿ · exp(r) with r = x − n·ln 2, |r| ≤ ln 2 / 2, ln 2 in two parts; coefficients as in Cephes' expf.
INLINE vec exp_of(vec x) {
  const vec magic = all(12582912.0f);  // 1.5 · 2²³: adding it rounds to a whole number, kept in the low bits
  vec shifted = x * 1.44269504088896341f + magic;
  vec n = shifted - magic;
  vec r = x - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  ivec scaled = (ivec)p + ((ivec)shifted << 23);
  return bits(scaled & ~(x < -87.0f));
}

// x·Φ(x) as in kernels/cpu/numpy_ops.py: max(x, 0) − |x|·Φ(−|x|), Φ(−a) = exp(−a²/2)·(c₁t + … + c₆t⁶), t = 1/(1 + 0.28a).
INLINE vec gelu_of(vec x) {
  vec magnitude = bits((ivec)x & 0x7fffffff);
  vec t = 1.0f / (magnitude * 0.28f + 1.0f);
  vec tail = t * -0.1075547973f;
  tail = (tail + 0.3969896439f) * t;
  tail = (tail + -0.2485174407f) * t;
  tail = (tail + 0.2781819808f) * t;
  tail = (tail + 0.06379158143f) * t;
  tail = (tail + 0.1171089832f) * t;
  return max_of(x, all(0.0f)) - tail * magnitude * exp_of(magnitude * magnitude * -0.5f);
}
