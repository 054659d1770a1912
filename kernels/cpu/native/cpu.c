// The functions that kernels/cpu/native_kernels.py calls: Whisper's encoder and decoder, compiled per instruction set (build.sh).
#include "choice.h"
#include "decoder.h"
#include "encoder.h"

#define JOIN_(name, suffix) name##_##suffix
#define JOIN(name, suffix) JOIN_(name, suffix)
#define EXPORT(name) __attribute__((visibility("default"))) JOIN(name, SUFFIX)

int64_t EXPORT(encoder_floats)(const struct model *m, int64_t n_threads) { return encoder_floats(m, n_threads); }
int64_t EXPORT(decoder_floats)(const struct model *m, int64_t rows, int64_t n_threads) { return decoder_floats(m, rows, n_threads); }
int64_t EXPORT(cross_floats)(const struct model *m) { return cross_floats(m); }
int64_t EXPORT(packed_floats)(int64_t n_out, int64_t n_in) { return packed_floats(n_out, n_in); }

// Sizes of the structures that kernels/cpu/native_library.py lays out, in the order of its STRUCTURES.
int64_t EXPORT(size_of)(int64_t index) {
  const int64_t sizes[] = {sizeof(struct team),   sizeof(struct matrix), sizeof(struct norm),
                           sizeof(struct product), sizeof(struct window_attention), sizeof(struct block),
                           sizeof(struct model),  sizeof(struct encoding), sizeof(struct decoding),
                           sizeof(struct screening), sizeof(struct choice)};
  return sizes[index];
}

void EXPORT(help)(struct team *team) { help(team); }

// A call that helpers join: they return once it has finished.
#define EXPORT_FOR_TEAM(name, type, arguments)                  \
  void EXPORT(name)(struct team *team, const struct type *p) {  \
    name(team, arguments);                                      \
    finish_team(team);                                          \
  }
EXPORT_FOR_TEAM(encode, encoding, p)
EXPORT_FOR_TEAM(append, decoding, p)
EXPORT_FOR_TEAM(multiply, product, *p)
EXPORT_FOR_TEAM(attend_window, window_attention, *p)
EXPORT_FOR_TEAM(screen, screening, p)

void EXPORT(choose)(struct choice *c) { choose(c); }
