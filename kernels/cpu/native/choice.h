// Chooses a sequence's next token from screened logits. They are computed from an int8 copy of the token table, which reads half the
// bytes of f16, and show which tokens are near the best. The logits of those are computed again from the table itself, so the likeliest
// text token and the likeliest timestamp are exact (for several sequences together, up to the order of f32 sums). The probability, and
// whether the timestamps together outweigh the text, are off by the rounding of the other logits: a thousandth of the best at most.
#pragma once
#include "model.h"

#define NEAR 8.0f  // natural logarithm: tokens this much less likely than the best stay screened
#define LOWEST -__builtin_inff()  // the logit of a token that may not come next

struct screening {
  const struct matrix *from;  // f16 or f32
  int8_t *values;             // [n_out, n_in]
  float *scales;              // [n_out]
};

// For a matrix in f16 or f32.
INLINE vec weights_at(const struct matrix *m, int64_t at) {
  return m->is_half ? load_half((const half *)m->values + at) : load((const float *)m->values + at);
}

// A row's largest weight is 127.
static void screen_piece(const void *arguments, int64_t piece, int thread) {
  typedef int8_t bytes __attribute__((vector_size(LANES)));
  const struct screening *s = arguments;
  const int64_t n_in = s->from->n_in, end = least((piece + 1) * FEW_COLUMNS, s->from->n_out);
  const vec magic = all(12582912.0f);  // 1.5 · 2²³: adding it rounds to a whole number, kept in the low bits
  for (int64_t row = piece * FEW_COLUMNS; row < end; row++) {
    vec high = {0};
    int64_t k = 0;
    for (; k + LANES <= n_in; k += LANES) high = max_of(high, bits((ivec)weights_at(s->from, row * n_in + k) & 0x7fffffff));
    float most = highest_of(high);
    for (; k < n_in; k++) {
      float weight = __builtin_fabsf(weight_at(s->from, row * n_in + k));
      most = weight > most ? weight : most;
    }
    const float inverse = most > 0 ? 127.0f / most : 0;
    s->scales[row] = most / 127.0f;
    for (k = 0; k + LANES <= n_in; k += LANES) {
      ivec whole = (ivec)(weights_at(s->from, row * n_in + k) * inverse + magic) - (ivec)magic;
      bytes low = __builtin_convertvector(whole, bytes);
      __builtin_memcpy(s->values + row * n_in + k, &low, LANES);
    }
    for (; k < n_in; k++) s->values[row * n_in + k] = ((ivec)(all(weight_at(s->from, row * n_in + k) * inverse) + magic) - (ivec)magic)[0];
  }
}

static void screen(struct team *team, const struct screening *s) {
  run(team, screen_piece, s, (s->from->n_out + FEW_COLUMNS - 1) / FEW_COLUMNS);
}

// The likeliest token of a range, the first of equal ones; -1 if none is allowed.
struct likeliest {
  int32_t token;
  float logit, sum;  // of exp(logit − the best) over the range
};

struct choice {
  const struct model *model;
  const float *hidden;   // [n_state]
  float *logits;  // [n_vocab], screened; made exact where that matters
  const int32_t *never;  // tokens that are never allowed
  int32_t *near;         // scratch: n_vocab values
  int32_t n_never, text_from, text_below, time_from, time_below;
  float widest;  // the largest of the screen's scales; 0 if the logits are exact
  struct likeliest text, time;
};

// The same sum as few_rows() for one row.
INLINE float exact_logit(const struct matrix *m, const float *x, int64_t token) {
  vec dot;
  float rest;
  dots_of(1, m, x, 0, token, &dot, &rest);
  return sum_of(dot) + rest;
}

INLINE float highest_in(const float *x, int64_t from, int64_t below) {
  vec high = all(LOWEST);
  int64_t k = from;
  for (; k + LANES <= below; k += LANES) high = max_of(high, load(x + k));
  float highest = highest_of(high);
  for (; k < below; k++) highest = x[k] > highest ? x[k] : highest;
  return highest;
}

static void sharpen(const struct choice *c, int64_t from, int64_t below, float margin) {
  const struct matrix *m = &c->model->token_embedding;
  const float least_logit = highest_in(c->logits, from, below) - margin;
  const int64_t bytes = m->n_in * (m->is_half ? 2 : 4);
  int64_t n = 0;
  for (int64_t first = from; first < below; first += LANES) {
    if (first + LANES <= below && !any_reaches(load(c->logits + first), least_logit)) continue;
    for (int64_t token = first; token < least(first + LANES, below); token++)
      if (c->logits[token] >= least_logit && c->logits[token] > LOWEST) c->near[n++] = token;
  }
  for (int64_t i = 0; i < n; i++) {
    if (i + 2 < n)
      for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch((const char *)m->values + c->near[i + 2] * bytes + b);
    c->logits[c->near[i]] = exact_logit(m, c->hidden, c->near[i]);
  }
}

static struct likeliest likeliest_in(const float *logits, int64_t from, int64_t below) {
  struct likeliest found = {-1, highest_in(logits, from, below), 0};
  if (found.logit == LOWEST) return found;
  const vec best = all(found.logit);
  vec sum = {0};
  int64_t k = from;
  for (; k + LANES <= below; k += LANES) sum += exp_of(load(logits + k) - best);
  for (found.sum = sum_of(sum); k < below; k++) found.sum += exp_of(all(logits[k]) - best)[0];
  for (int64_t token = from; token < below && found.token < 0; token++)
    if (logits[token] == found.logit) found.token = token;
  return found;  // without a token if the best is NaN
}

static void choose(struct choice *c) {
  const int64_t n_in = c->model->n_state;
  for (int i = 0; i < c->n_never; i++) c->logits[c->never[i]] = LOWEST;
  if (c->widest > 0) {
    float sum = 0;  // each weight is off by at most half a scale
    for (int64_t k = 0; k < n_in; k++) sum += __builtin_fabsf(c->hidden[k]);
    const float apart = sum * c->widest, margin = apart > NEAR ? apart : NEAR;
    sharpen(c, c->text_from, c->text_below, margin);
    sharpen(c, c->time_from, c->time_below, margin);
  }
  c->text = likeliest_in(c->logits, c->text_from, c->text_below);
  c->time = likeliest_in(c->logits, c->time_from, c->time_below);
}
