// softmax(q · Kᵀ) · V: over a whole window (keys in panels, rows in blocks), or a decoder's own past (causal, in a cache).
#pragma once
#include "product.h"

#define QUERY_ROWS 48  // rows per piece of work; their scores over 1500 keys (0.3 MB) fit into a core's second-level cache

INLINE int64_t padded(int64_t n_keys) { return n_panels(n_keys) * TILE_COLUMNS; }

struct window_attention {
  const float *q;       // [n_head][rows][d], scaled; heads q_head apart
  const float *keys;    // [n_head] of panels [d][TILE_COLUMNS]
  const float *values;  // [n_head][n_keys][d]
  float *y;             // [rows][n_head · d]
  int64_t rows, q_head, n_keys, n_head, d;
  float *threads;
  int64_t thread_floats;
};

struct pack_keys {
  const float *keys;  // [n_head][n_keys][d]
  float *packed;
  int64_t n_keys, d;
};

static void pack_keys_piece(const void *arguments, int64_t head, int thread) {
  const struct pack_keys *p = arguments;
  for (int64_t key = 0; key < p->n_keys; key += TILE_COLUMNS)
    pack_panel(p->keys + (head * p->n_keys + key) * p->d, 0, p->d, least(TILE_COLUMNS, p->n_keys - key), p->d,
               p->packed + (head * padded(p->n_keys) + key) * p->d);
}

// exp(scores − their maximum) in place, padding included; returns their sum without the padding's.
INLINE float exponentials(float *scores, int64_t n, int64_t n_padded) {
  for (int64_t k = n; k < n_padded; k++) scores[k] = -1e30f;
  vec high = all(-1e30f), sum = {0};
  for (int64_t k = 0; k < n_padded; k += LANES) high = max_of(high, load(scores + k));
  vec highest = all(highest_of(high));
  for (int64_t k = 0; k < n_padded; k += LANES) {
    vec e = exp_of(load(scores + k) - highest);
    store(scores + k, e);
    sum += e;
  }
  return sum_of(sum);
}

static void window_piece(const void *arguments, int64_t piece, int thread) {
  const struct window_attention *a = arguments;
  const int64_t blocks = (a->rows + QUERY_ROWS - 1) / QUERY_ROWS, wide = padded(a->n_keys), d = a->d;
  const int64_t head = piece / blocks, first = piece % blocks * QUERY_ROWS, rows = least(QUERY_ROWS, a->rows - first);
  const float *q = a->q + head * a->q_head + first * d, *keys = a->keys + head * wide * d;
  const float *values = a->values + head * a->n_keys * d;
  float *scores = a->threads + thread * a->thread_floats;
  float totals[QUERY_ROWS], sums[TILE_ROWS * TILE_COLUMNS];
  for (int64_t key = 0; key < wide; key += TILE_COLUMNS)
    for (int64_t row = 0; row < rows; row += TILE_ROWS)
      any_tile(least(TILE_ROWS, rows - row), q + row * d, d, keys + key * d, TILE_COLUMNS, d, scores + row * wide + key, wide);
  for (int64_t row = 0; row < rows; row++) totals[row] = 1.0f / exponentials(scores + row * wide, a->n_keys, wide);
  float *y = a->y + first * a->n_head * d + head * d;
  int64_t column = 0;
  for (; column + TILE_COLUMNS <= d; column += TILE_COLUMNS)
    for (int64_t row = 0; row < rows; row += TILE_ROWS) {
      int n = least(TILE_ROWS, rows - row);
      any_tile(n, scores + row * wide, wide, values + column, d, a->n_keys, sums, TILE_COLUMNS);
      for (int r = 0; r < n; r++)
        for (int c = 0; c < TILE_COLUMNS; c += LANES)
          store(y + (row + r) * a->n_head * d + column + c, load(sums + r * TILE_COLUMNS + c) * totals[row + r]);
    }
  for (; column < d; column++)  // heads of no whole tile
    for (int64_t row = 0; row < rows; row++) {
      float sum = 0;
      for (int64_t k = 0; k < a->n_keys; k++) sum += scores[row * wide + k] * values[k * d + column];
      y[row * a->n_head * d + column] = sum * totals[row];
    }
}

INLINE int64_t window_floats(int64_t rows, int64_t n_keys) { return least(rows, QUERY_ROWS) * padded(n_keys); }

static void attend_window(struct team *team, struct window_attention a) {
  run(team, window_piece, &a, a.n_head * ((a.rows + QUERY_ROWS - 1) / QUERY_ROWS));
}

struct past_attention {
  const float *q;               // [n_head][n_sequences · n_new][d], scaled
  const float *keys, *values;   // [n_sequences][n_head][n_text_ctx][d]
  float *y;                     // [n_sequences · n_new][n_head · d]
  int64_t n_sequences, n_new, n_past, n_head, n_text_ctx, d;
  float *threads;
  int64_t thread_floats;
};

INLINE float dot(const float *a, const float *b, int64_t n) {
  vec sum = {0};
  int64_t k = 0;
  for (; k + LANES <= n; k += LANES) sum += load(a + k) * load(b + k);
  float total = sum_of(sum);
  for (; k < n; k++) total += a[k] * b[k];
  return total;
}

static void past_piece(const void *arguments, int64_t piece, int thread) {
  const struct past_attention *a = arguments;
  const int64_t sequence = piece / a->n_head, head = piece % a->n_head, d = a->d;
  const float *keys = a->keys + piece * a->n_text_ctx * d, *values = a->values + piece * a->n_text_ctx * d;
  float *scores = a->threads + thread * a->thread_floats;
  for (int64_t new = 0; new < a->n_new; new++) {
    const int64_t row = sequence * a->n_new + new, n = a->n_past + new + 1, wide = (n + LANES - 1) / LANES * LANES;
    const float *q = a->q + (head * a->n_sequences * a->n_new + row) * d;
    float *y = a->y + (row * a->n_head + head) * d;
    for (int64_t k = 0; k < n; k++) scores[k] = dot(q, keys + k * d, d);
    const float total = 1.0f / exponentials(scores, n, wide);
    for (int64_t i = 0; i < d; i++) y[i] = 0;
    for (int64_t k = 0; k < n; k++)
      for (int64_t i = 0; i < d; i++) y[i] += scores[k] * total * values[k * d + i];
  }
}

static void attend_past(struct team *team, struct past_attention a) {
  run(team, past_piece, &a, a.n_sequences * a.n_head);
}
