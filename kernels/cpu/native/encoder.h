// Whisper's encoder: a log-mel window → audio states, and every decoder layer's cross-attention keys and values.
#pragma once
#include "model.h"

struct encoding {
  const struct model *model;
  const float *mel;  // [1 + 2 · n_audio_ctx + 1, n_mels]: the frames, with a frame of zeros before and after
  float *states;     // [n_audio_ctx, n_state]
  float *cross;      // [n_text_layer] of cross_floats(): what the decoder attends to
  float *scratch;    // encoder_floats() values
};

INLINE int64_t encoder_thread_floats(const struct model *m) {
  int64_t scores = window_floats(m->n_audio_ctx, m->n_audio_ctx), normal = (int64_t)ROWS * m->n_state;
  return (scores > normal ? scores : normal) + 64;
}

// For the largest matrix: the MLP's, or the first convolution's if there are more mel bands than in any Whisper.
INLINE int64_t encoder_packed_floats(const struct model *m) {
  const int64_t mlp = packed_floats(m->n_state, 4 * m->n_state) + packed_floats(4 * m->n_state, m->n_state);
  const int64_t conv1 = packed_floats(m->n_state, 3 * m->n_mels);
  return mlp > conv1 ? mlp : conv1;
}

INLINE int64_t encoder_floats(const struct model *m, int64_t n_threads) {
  const int64_t state = (int64_t)m->n_audio_ctx * m->n_state;
  const int64_t packed = encoder_packed_floats(m);
  return 8 * state + (padded(m->n_audio_ctx) + 2) * m->n_state + packed + n_threads * encoder_thread_floats(m) + 256;
}

struct ending {
  const struct norm *norm;
  float *x;
  int64_t rows, n_state;
};

static void norm_piece(const void *arguments, int64_t piece, int thread) {
  const struct ending *e = arguments;
  float *x = e->x + piece * ROWS * e->n_state;
  layer_norm(e->norm, x, e->n_state, least(ROWS, e->rows - piece * ROWS), e->n_state, x);
}

// The first frame that equals all later ones: the silence that fills a window after the recording's end.
static int64_t first_alike(const float *frames, int64_t n_frames, int64_t width) {
  int64_t first = n_frames - 1;
  const float *last = frames + first * width;
  for (; first > 0; first--)
    for (int64_t i = 0; i < width; i++)
      if (frames[(first - 1) * width + i] != last[i]) return first;
  return first;
}

// A convolution of width 3 is a linear map of three adjacent frames. Rows from `alike` on are equal, except for the last one, which
// reaches beyond the window, so only one of them is computed.
static void convolve(struct team *team, const struct workspace *w, const struct matrix *m, struct linear l, int64_t alike) {
  const int64_t rows = l.rows, n_out = m->n_out;
  if (alike + 2 < rows) l.rows = alike + 1;
  linear(team, w, m, l);
  if (l.rows == rows) return;
  float *y = l.y;
  l.x += (rows - 1) * l.row_stride, l.y += (rows - 1) * n_out, l.rows = 1;
  linear(team, w, m, l);
  for (int64_t row = alike + 1; row < rows - 1; row++) __builtin_memcpy(y + row * n_out, y + alike * n_out, n_out * sizeof *y);
}

static void encode(struct team *team, const struct encoding *e) {
  const struct model *m = e->model;
  const int64_t n_ctx = m->n_audio_ctx, n_state = m->n_state, n_head = m->n_audio_head, d = n_state / n_head;
  const int64_t state = n_ctx * n_state;
  float *scratch = e->scratch, *x = e->states;
  // Attention's arrays and the MLP's are never in use together.
  float *hidden = take(&scratch, 4 * state), *q = hidden, *k = q + state, *v = k + state, *attended = v + state;
  float *features = take(&scratch, 2 * state + 2 * n_state);
  float *keys = take(&scratch, padded(n_ctx) * n_state);
  struct workspace w = {.thread_floats = encoder_thread_floats(m)};
  w.packed = take(&scratch, encoder_packed_floats(m));
  w.threads = take(&scratch, team->n_threads * w.thread_floats);

  const int64_t alike = 1 + first_alike(e->mel + m->n_mels, 2 * n_ctx, m->n_mels);  // after the frame of zeros
  for (int64_t i = 0; i < n_state; i++) features[i] = features[(2 * n_ctx + 1) * n_state + i] = 0;
  convolve(team, &w, &m->conv1, (struct linear){e->mel, 2 * n_ctx, m->n_mels, NULL, THEN_GELU, features + n_state}, alike);
  convolve(team, &w, &m->conv2, (struct linear){features, n_ctx, 2 * n_state, NULL, THEN_GELU, x}, (alike + 2) / 2);
  for (int64_t i = 0; i < state; i++) x[i] += m->audio_positions[i];

  for (int layer = 0; layer < m->n_audio_layer; layer++) {
    const struct block *b = m->encoder + layer;
    struct linear in = {x, n_ctx, n_state, &b->attn_ln, THEN_STORE, q};
    heads(team, &w, &b->query, in, 1.0f / __builtin_sqrtf(d), n_head, n_ctx * d);
    in.y = k;
    heads(team, &w, &b->key, in, 1.0f, n_head, n_ctx * d);
    in.y = v;
    heads(team, &w, &b->value, in, 1.0f, n_head, n_ctx * d);
    struct pack_keys pack = {k, keys, n_ctx, d};
    run(team, pack_keys_piece, &pack, n_head);
    attend_window(team, (struct window_attention){q, keys, v, attended, n_ctx, n_ctx * d, n_ctx, n_head, d, w.threads,
                                                  w.thread_floats});
    linear(team, &w, &b->out, (struct linear){attended, n_ctx, n_state, NULL, THEN_ADD, x});
    mlp(team, &w, b, x, n_ctx, hidden);
  }
  struct ending ending = {&m->ln_post, x, n_ctx, n_state};
  run(team, norm_piece, &ending, (n_ctx + ROWS - 1) / ROWS);

  for (int layer = 0; layer < m->n_text_layer; layer++) {
    const struct block *b = m->decoder + layer;
    const int64_t d_text = n_state / m->n_text_head;
    float *packed = e->cross + layer * cross_floats(m);
    struct linear in = {x, n_ctx, n_state, NULL, THEN_STORE, k};
    heads(team, &w, &b->cross_key, in, 1.0f, m->n_text_head, n_ctx * d_text);
    struct pack_keys pack = {k, packed, n_ctx, d_text};
    run(team, pack_keys_piece, &pack, m->n_text_head);
    in.y = packed + padded(n_ctx) * n_state;
    heads(team, &w, &b->cross_value, in, 1.0f, m->n_text_head, n_ctx * d_text);
  }
}
