// y = f(x · Wᵀ + b): linear maps over many rows (a blocked product) or a few (bound by reading W).
#pragma once
#include "team.h"

struct matrix {
  const void *values;  // [n_out, n_in], f16 or f32, or int8 if there are scales
  const float *bias;   // [n_out] or NULL
  int32_t n_out, n_in, is_half, unused;
  const float *scales;  // [n_out + LANES]: the scale of each int8 row; NULL for f16 and f32. An int8 matrix is for few rows only
};

struct norm {
  const float *weight, *bias;  // [n_state]
};

enum then { THEN_STORE, THEN_GELU, THEN_ADD };

struct product {
  const float *x;  // [rows], row_stride values apart
  int64_t rows, row_stride;
  const struct norm *norm;  // applied to x first, or NULL
  const struct matrix *matrix;
  float scale;  // of x · Wᵀ + b
  enum then then;
  // Where column c of row r goes: y[(c / head) · head_stride + r · y_stride + c % head]. A plain matrix has head = n_out.
  float *y;
  int64_t head, head_stride, y_stride;
  // scratch
  float *packed;   // the whole matrix in panels, when rows > FEW
  float *threads;  // each thread's own, thread_floats apart
  int64_t thread_floats;
};

#define FEW 24          // most rows for which reading W once for every eight of them beats packing it
#define ROWS 96         // most rows per piece of work; its x stays in a core's second-level cache
#define FEW_COLUMNS 64  // outputs per piece of work when rows are few
#define EVEN_PIECES 8   // per thread, if that makes larger pieces
#define CHAINS (64 / LANES)  // concurrent sums when rows are few: the processor starts these before the first is done

// Panels of TILE_COLUMNS outputs: panel[k][column], f32, zeros after the last output.
INLINE int64_t n_panels(int64_t n_out) { return (n_out + TILE_COLUMNS - 1) / TILE_COLUMNS; }
INLINE int64_t packed_floats(int64_t n_out, int64_t n_in) { return n_panels(n_out) * TILE_COLUMNS * n_in; }

// One panel of W rows that lie `stride` values apart.
INLINE void pack_panel(const void *values, int is_half, int64_t stride, int64_t n_rows, int64_t n_in, float *panel) {
  const half *h = values;
  const float *f = values;
  for (int64_t first = 0; first < TILE_COLUMNS; first += LANES) {
    const int64_t rows = n_rows - first;
    int64_t k = 0;
    for (; rows >= LANES && k + LANES <= n_in; k += LANES) {
      vec square[LANES];
      for (int i = 0; i < LANES; i++) {
        const int64_t at = (first + i) * stride + k;
        square[i] = is_half ? load_half(h + at) : load(f + at);
      }
      transpose(square);
      for (int i = 0; i < LANES; i++) store(panel + (k + i) * TILE_COLUMNS + first, square[i]);
    }
    for (; k < n_in; k++)
      for (int64_t i = 0; i < LANES; i++) {
        const int64_t at = (first + i) * stride + k;
        panel[k * TILE_COLUMNS + first + i] = i >= rows ? 0 : is_half ? one_half(h + at) : f[at];
      }
  }
}

// out[rows][TILE_COLUMNS] (out_stride apart) = x[rows][k] · panel[k][TILE_COLUMNS] (panel rows panel_stride apart).
INLINE void tile(const int rows, const float *x, int64_t x_stride, const float *panel, int64_t panel_stride, int64_t n_in,
                 float *out, int64_t out_stride) {
  vec sums[TILE_ROWS][2];
  for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vec){0};
  for (int64_t k = 0; k < n_in; k++) {
    vec low = load(panel + k * panel_stride), high = load(panel + k * panel_stride + LANES);
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
      vec value = all(x[r * x_stride + k]);
      sums[r][0] += value * low;
      sums[r][1] += value * high;
    }
  }
  for (int r = 0; r < rows; r++) {
    store(out + r * out_stride, sums[r][0]);
    store(out + r * out_stride + LANES, sums[r][1]);
  }
}

static void any_tile(int rows, const float *x, int64_t x_stride, const float *panel, int64_t panel_stride, int64_t n_in,
                     float *out, int64_t out_stride) {
#define CASE(n) \
  case n: tile(n, x, x_stride, panel, panel_stride, n_in, out, out_stride); return;
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
  }
#undef CASE
}

// (rows, n) with mean 0 and variance 1 in each row, scaled and shifted.
static void layer_norm(const struct norm *norm, const float *x, int64_t x_stride, int64_t rows, int64_t n, float *y) {
  for (int64_t r = 0; r < rows; r++, x += x_stride, y += n) {
    vec sum = {0}, squares = {0};
    float mean = 0, variance = 0;
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES) sum += load(x + k);
    for (mean = sum_of(sum); k < n; k++) mean += x[k];
    mean /= n;
    for (k = 0; k + LANES <= n; k += LANES) {
      vec centred = load(x + k) - mean;
      squares += centred * centred;
    }
    for (variance = sum_of(squares); k < n; k++) variance += (x[k] - mean) * (x[k] - mean);
    float scale = 1.0f / __builtin_sqrtf(variance / n + 1e-5f);
    for (k = 0; k + LANES <= n; k += LANES)
      store(y + k, (load(x + k) - mean) * scale * load(norm->weight + k) + load(norm->bias + k));
    for (; k < n; k++) y[k] = (x[k] - mean) * scale * norm->weight[k] + norm->bias[k];
  }
}

// Applies bias, scale, GELU or addition to n columns (at most LANES) from `column` on, in rows from `first` on, and stores them.
INLINE void place(const struct product *p, int64_t first, int64_t rows, int64_t column, const float *values,
                  int64_t values_stride, int64_t n) {
  const float *bias = p->matrix->bias;
  const int64_t within = column % p->head;
  float *y = p->y + column / p->head * p->head_stride + first * p->y_stride + within;
  if (n == LANES && within + LANES <= p->head) {
    const vec biases = bias ? load(bias + column) : (vec){0};
    for (int64_t r = 0; r < rows; r++, y += p->y_stride) {
      vec value = (load(values + r * values_stride) + biases) * p->scale;
      if (p->then == THEN_GELU) value = gelu_of(value);
      if (p->then == THEN_ADD) value += load(y);
      store(y, value);
    }
    return;
  }
  for (int64_t i = 0; i < n; i++) {  // past the end of a head, the next one begins
    y = p->y + (column + i) / p->head * p->head_stride + first * p->y_stride + (column + i) % p->head;
    for (int64_t r = 0; r < rows; r++, y += p->y_stride) {
      float one = (values[r * values_stride + i] + (bias ? bias[column + i] : 0)) * p->scale;
      if (p->then == THEN_GELU) one = gelu_of(all(one))[0];
      *y = p->then == THEN_ADD ? *y + one : one;
    }
  }
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void pack_piece(const void *arguments, int64_t piece, int thread) {
  const struct product *p = arguments;
  const struct matrix *m = p->matrix;
  int64_t first = piece * TILE_COLUMNS, size = m->is_half ? 2 : 4;
  const char *values = (const char *)m->values + first * m->n_in * size;
  pack_panel(values, m->is_half, m->n_in, least(TILE_COLUMNS, m->n_out - first), m->n_in, p->packed + first * m->n_in);
}

// Shared by the pieces of a product.
struct part {
  const struct product *product;
  int64_t size;  // rows per piece, or outputs when rows are few
};

static void many_piece(const void *arguments, int64_t piece, int thread) {
  const struct part *part = arguments;
  const struct product *p = part->product;
  const int64_t n_in = p->matrix->n_in, n_out = p->matrix->n_out;
  int64_t first = piece * part->size, rows = least(part->size, p->rows - first), x_stride = p->row_stride;
  const float *x = p->x + first * x_stride;
  if (p->norm) {
    float *normal = p->threads + thread * p->thread_floats;
    layer_norm(p->norm, x, x_stride, rows, n_in, normal);
    x = normal, x_stride = n_in;
  }
  float sums[TILE_ROWS * TILE_COLUMNS];
  for (int64_t column = 0; column < n_out; column += TILE_COLUMNS)
    for (int64_t row = 0; row < rows; row += TILE_ROWS) {
      int n = least(TILE_ROWS, rows - row);
      any_tile(n, x + row * x_stride, x_stride, p->packed + column * n_in, TILE_COLUMNS, n_in, sums, TILE_COLUMNS);
      for (int64_t c = 0; c < TILE_COLUMNS && column + c < n_out; c += LANES)
        place(p, first + row, n, column + c, sums + c, TILE_COLUMNS, least(LANES, n_out - column - c));
    }
}

INLINE float weight_at(const struct matrix *m, int64_t at) {
  if (m->scales) return ((const int8_t *)m->values)[at];
  return m->is_half ? one_half((const half *)m->values + at) : ((const float *)m->values)[at];
}

INLINE float scale_of(const struct matrix *m, int64_t row) { return m->scales ? m->scales[row] : 1; }

// Row `column` of W times each row of x: dots[row], whose elements and rests[row] remain to be added. rows is a constant
// where this is inlined. W is read from end to end: the processor would not prefetch several of its rows read at the
// same time.
INLINE void dots_of(const int rows, const struct matrix *m, const float *x, int64_t x_stride, int64_t column, vec *dots,
                    float *rests) {
  const int chains = rows >= CHAINS ? 1 : CHAINS / rows;  // of a row of x: a power of 2
  const int64_t n_in = m->n_in, at = column * n_in;
  vec sums[8][CHAINS];
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < chains; i++) sums[r][i] = (vec){0};
  int64_t k = 0;
#define DOTS(load_weights, type, n)                                                                    \
  for (; k + n * LANES <= n_in; k += n * LANES)                                                        \
    for (int i = 0; i < n; i++) {                                                                      \
      vec weights = load_weights((const type *)m->values + at + k + i * LANES);                        \
      for (int r = 0; r < rows; r++) sums[r][i] += load(x + r * x_stride + k + i * LANES) * weights;   \
    }
  if (m->scales) {
    DOTS(load_byte, int8_t, chains)
    DOTS(load_byte, int8_t, 1)
  } else if (m->is_half) {
    DOTS(load_half, half, chains)
    DOTS(load_half, half, 1)
  } else {
    DOTS(load, float, chains)
    DOTS(load, float, 1)
  }
#undef DOTS
  for (int r = 0; r < rows; r++) {
    for (int n = chains / 2; n > 0; n /= 2)
      for (int i = 0; i < n; i++) sums[r][i] += sums[r][i + n];
    dots[r] = sums[r][0];
    rests[r] = 0;
  }
  for (; k < n_in; k++)
    for (int r = 0; r < rows; r++) rests[r] += x[r * x_stride + k] * weight_at(m, at + k);
}

// sums[row][LANES] of the rows of W from `column` on; rows is a constant where this is inlined.
INLINE void few_rows(const int rows, const struct matrix *m, const float *x, int64_t x_stride, int64_t column, float *sums) {
  vec whole[8][LANES], dots[8];
  float rests[8][LANES], rest[8];
  const int64_t last = m->n_out - 1;  // past the end, the last row is repeated and its result dropped
  for (int64_t c = 0; c < LANES; c++) {
    dots_of(rows, m, x, x_stride, least(column + c, last), dots, rest);
    for (int r = 0; r < rows; r++) whole[r][c] = dots[r], rests[r][c] = rest[r];
  }
  for (int r = 0; r < rows; r++) {
    vec sum = sums_of(whole[r]) + load(rests[r]);
    store(sums + r * LANES, m->scales ? sum * load(m->scales + column) : sum);
  }
}

static void few_piece(const void *arguments, int64_t piece, int thread) {
  const struct part *part = arguments;
  const struct product *p = part->product;
  const struct matrix *m = p->matrix;
  const int64_t end = least((piece + 1) * part->size, m->n_out);
  float sums[8 * LANES];
  for (int64_t column = piece * part->size; column < end; column += LANES) {
    int64_t columns = least(LANES, end - column);
    for (int64_t row = 0; row < p->rows; row += 8) {
      const float *x = p->x + row * p->row_stride;
      int rows = least(8, p->rows - row);
#define CASE(n) \
  case n: few_rows(n, m, x, p->row_stride, column, sums); break;
      switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
      place(p, row, rows, column, sums, LANES, columns);
    }
  }
}

// Rows per piece, in whole tiles and at most ROWS, with which equally fast threads finish soonest.
INLINE int64_t even_rows(int64_t rows, int64_t n_threads) {
  int64_t best = ROWS, soonest = INT64_MAX;
  for (int64_t size = ROWS; size >= ROWS / 2; size -= TILE_ROWS) {
    const int64_t pieces = (rows + size - 1) / size, longest = (pieces + n_threads - 1) / n_threads * size;
    if (longest < soonest) best = size, soonest = longest;
  }
  return best;
}

// Computes the product with the whole team. `p->norm` of a few rows is applied here, into the leader's scratch.
static void multiply(struct team *team, struct product p) {
  if (p.rows <= FEW) {
    if (p.norm) {
      layer_norm(p.norm, p.x, p.row_stride, p.rows, p.matrix->n_in, p.threads);
      p.x = p.threads, p.row_stride = p.matrix->n_in;
    }
    const int64_t n_out = p.matrix->n_out, even = n_out / (EVEN_PIECES * team->n_threads) / LANES * LANES;
    struct part part = {&p, even > FEW_COLUMNS ? even : FEW_COLUMNS};
    run(team, few_piece, &part, (n_out + part.size - 1) / part.size);
    return;
  }
  run(team, pack_piece, &p, n_panels(p.matrix->n_out));
  struct part part = {&p, even_rows(p.rows, team->n_threads)};
  run(team, many_piece, &part, (p.rows + part.size - 1) / part.size);
}
