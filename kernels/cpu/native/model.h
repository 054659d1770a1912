// A Whisper's weights in place: pointers into the mapped checkpoint, or to f32 copies of converted weights.
#pragma once
#include "attention.h"

struct block {
  struct norm attn_ln;
  struct matrix query, key, value, out;
  struct norm cross_attn_ln;  // this and the next four: a decoder's only
  struct matrix cross_query, cross_key, cross_value, cross_out;
  struct norm mlp_ln;
  struct matrix mlp_up, mlp_down;  // [4 · n_state, n_state], [n_state, 4 · n_state]
};

struct model {
  int32_t n_mels, n_audio_ctx, n_state, n_audio_head, n_audio_layer, n_vocab, n_text_ctx, n_text_head, n_text_layer, unused;
  struct matrix conv1, conv2;    // [n_state, 3 · n_mels], [n_state, 3 · n_state]: three consecutive frames
  const float *audio_positions;  // [n_audio_ctx, n_state]
  const struct block *encoder;
  struct norm ln_post;
  struct matrix token_embedding;  // [n_vocab, n_state], also the output's weight
  struct matrix screen;           // its int8 copy, see choice.h; token_embedding itself if the file has it in int8
  const float *text_positions;    // [n_text_ctx, n_state]
  const struct block *decoder;
  struct norm ln;
};

// A decoder layer's cross-attention over one window: keys in panels, then values, head after head.
INLINE int64_t cross_floats(const struct model *m) { return (padded(m->n_audio_ctx) + m->n_audio_ctx) * m->n_state; }

// Scratch is taken from one buffer, front to back.
INLINE float *take(float **scratch, int64_t floats) {
  float *taken = *scratch;
  *scratch += (floats + 15) / 16 * 16;
  return taken;
}

// Scratch that products share: packed weights, and each thread's own values.
struct workspace {
  float *packed, *threads;
  int64_t thread_floats;
};

struct linear {
  const float *x;
  int64_t rows, row_stride;
  const struct norm *norm;
  enum then then;
  float *y;
};

// A plain linear map: y[rows][n_out].
INLINE void linear(struct team *team, const struct workspace *w, const struct matrix *matrix, struct linear l) {
  multiply(team, (struct product){l.x, l.rows, l.row_stride, l.norm, matrix, 1.0f, l.then, l.y, matrix->n_out, 0,
                                  matrix->n_out, w->packed, w->threads, w->thread_floats});
}

// A linear map whose output is split by head: y[n_head][…][d], heads `head_stride` apart.
INLINE void heads(struct team *team, const struct workspace *w, const struct matrix *matrix, struct linear l, float scale,
                  int64_t n_head, int64_t head_stride) {
  const int64_t d = matrix->n_out / n_head;
  multiply(team, (struct product){l.x, l.rows, l.row_stride, l.norm, matrix, scale, l.then, l.y, d, head_stride, d,
                                  w->packed, w->threads, w->thread_floats});
}

// x += MLP(LN(x)); hidden: [rows, 4 · n_state].
INLINE void mlp(struct team *team, const struct workspace *w, const struct block *b, float *x, int64_t rows, float *hidden) {
  const int64_t n_state = b->mlp_up.n_in, n_hidden = b->mlp_up.n_out;
  linear(team, w, &b->mlp_up, (struct linear){x, rows, n_state, &b->mlp_ln, THEN_GELU, hidden});
  linear(team, w, &b->mlp_down, (struct linear){hidden, rows, n_hidden, NULL, THEN_ADD, x});
}
