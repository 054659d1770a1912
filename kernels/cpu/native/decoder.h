// Whisper's decoder: runs some sequences' new tokens through every block and caches their keys and values.
#pragma once
#include "model.h"

struct decoding {
  const struct model *model;
  const float *cross;     // the window's, as the encoder writes it
  float *cache;           // [n_text_layer][2][n_sequences][n_head][n_text_ctx][d]: keys, values
  const int32_t *tokens;  // [n_sequences][n_new]
  int64_t n_sequences, n_new, n_past;
  float *hidden;   // [n_sequences · n_new][n_state]: layer-normed, the input of the logits
  float *logits;   // [n_sequences][n_vocab] of the last positions, screened, or NULL; of at most FEW sequences
  float *queries;  // [n_text_layer][n_head][n_sequences · n_new][d]: cross-attention's
  float *scratch;  // decoder_floats() values
};

INLINE int64_t decoder_thread_floats(const struct model *m, int64_t rows) {
  int64_t scores = window_floats(rows, m->n_audio_ctx), past = padded(m->n_text_ctx);
  int64_t normal = (int64_t)(rows < FEW ? FEW : ROWS) * m->n_state;
  return (scores > normal ? scores : normal) + past;
}

INLINE int64_t decoder_floats(const struct model *m, int64_t rows, int64_t n_threads) {
  const int64_t packed = rows > FEW ? packed_floats(4 * m->n_state, m->n_state) + packed_floats(m->n_state, 4 * m->n_state) : 0;
  return rows * m->n_state * 6 + packed + n_threads * decoder_thread_floats(m, rows) + 256;
}

// Copies a product's output [n_head][n_sequences · n_new][d] to its places in the cache [n_sequences][n_head][n_text_ctx][d].
static void put(const struct decoding *s, const float *from, float *cache, int64_t d) {
  const int64_t n_head = s->model->n_text_head, n_ctx = s->model->n_text_ctx;
  for (int64_t head = 0; head < n_head; head++)
    for (int64_t sequence = 0; sequence < s->n_sequences; sequence++)
      for (int64_t i = 0; i < s->n_new * d; i++)
        cache[((sequence * n_head + head) * n_ctx + s->n_past) * d + i] = from[(head * s->n_sequences + sequence) * s->n_new * d + i];
}

static void append(struct team *team, const struct decoding *s) {
  const struct model *m = s->model;
  const int64_t n_state = m->n_state, n_head = m->n_text_head, d = n_state / n_head;
  const int64_t rows = s->n_sequences * s->n_new, state = rows * n_state;
  const int64_t cache_floats = s->n_sequences * m->n_text_ctx * n_state;
  const float scale = 1.0f / __builtin_sqrtf(d);
  float *scratch = s->scratch, *x = take(&scratch, state);
  float *hidden = take(&scratch, 4 * state), *q = hidden, *k = q + state, *v = k + state, *attended = v + state;
  struct workspace w = {.thread_floats = decoder_thread_floats(m, rows)};
  if (rows > FEW) w.packed = take(&scratch, packed_floats(4 * n_state, n_state) + packed_floats(n_state, 4 * n_state));
  w.threads = take(&scratch, team->n_threads * w.thread_floats);

  for (int64_t row = 0; row < rows; row++) {
    const int64_t at = s->tokens[row] * n_state;
    const float *position = m->text_positions + (s->n_past + row % s->n_new) * n_state;
    for (int64_t i = 0; i < n_state; i++)
      x[row * n_state + i] = position[i] + weight_at(&m->token_embedding, at + i) * scale_of(&m->token_embedding, s->tokens[row]);
  }
  for (int layer = 0; layer < m->n_text_layer; layer++) {
    const struct block *b = m->decoder + layer;
    float *keys = s->cache + 2 * layer * cache_floats, *values = keys + cache_floats;
    struct linear in = {x, rows, n_state, &b->attn_ln, THEN_STORE, q};
    heads(team, &w, &b->query, in, scale, n_head, rows * d);
    in.y = k;
    heads(team, &w, &b->key, in, 1.0f, n_head, rows * d);
    in.y = v;
    heads(team, &w, &b->value, in, 1.0f, n_head, rows * d);
    put(s, k, keys, d);
    put(s, v, values, d);
    attend_past(team, (struct past_attention){q, keys, values, attended, s->n_sequences, s->n_new, s->n_past, n_head,
                                              m->n_text_ctx, d, w.threads, w.thread_floats});
    linear(team, &w, &b->out, (struct linear){attended, rows, n_state, NULL, THEN_ADD, x});

    const float *cross = s->cross + layer * cross_floats(m);
    float *queries = s->queries + layer * state;
    heads(team, &w, &b->cross_query, (struct linear){x, rows, n_state, &b->cross_attn_ln, THEN_STORE, queries}, scale,
          n_head, rows * d);
    attend_window(team, (struct window_attention){queries, cross, cross + padded(m->n_audio_ctx) * n_state, attended, rows,
                                                  rows * d, m->n_audio_ctx, n_head, d, w.threads, w.thread_floats});
    linear(team, &w, &b->cross_out, (struct linear){attended, rows, n_state, NULL, THEN_ADD, x});
    mlp(team, &w, b, x, rows, hidden);
  }
  layer_norm(&m->ln, x, n_state, rows, n_state, s->hidden);
  if (s->logits) {
    const float *last = s->hidden + (s->n_new - 1) * n_state;
    linear(team, &w, &m->screen, (struct linear){last, s->n_sequences, s->n_new * n_state, NULL, THEN_STORE, s->logits});
  }
}
