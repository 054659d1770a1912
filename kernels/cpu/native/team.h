// Threads that share one call's work. The caller leads; helpers join when they get a core, and the caller waits for one only while
// it holds a piece. Pieces are claimed one by one, so a slow or late thread takes fewer.
#pragma once
#include <sched.h>

#include "vector.h"

typedef void (*work_fn)(const void *arguments, int64_t piece, int thread);

// A ticket's bits: the round of work, its number of pieces, the next unclaimed one.
#define PIECES_SHIFT 20
#define ROUND_SHIFT 40
#define FIELD ((1u << 20) - 1)

struct team {
  uint64_t ticket;
  int64_t done;  // pieces of this round that are finished
  int32_t over;  // no rounds will follow
  int32_t joined, n_threads;
  int32_t round;
  work_fn work;
  const void *arguments;
};

INLINE void wait_a_little(int *spins) {
  if (++*spins < 512)
    _mm_pause();
  else
    sched_yield();
}

// Claims and does one piece; 0 if there is none.
INLINE int do_one(struct team *team, int thread) {
  uint64_t seen = __atomic_load_n(&team->ticket, __ATOMIC_ACQUIRE);
  if ((seen & FIELD) >= ((seen >> PIECES_SHIFT) & FIELD)) return 0;
  uint64_t mine = __atomic_fetch_add(&team->ticket, 1, __ATOMIC_ACQ_REL);
  // The ticket may be a later round's by now: number and count come from one word, so they belong together, and the
  // leader changes `work` only when every claimed piece is done.
  if ((mine & FIELD) >= ((mine >> PIECES_SHIFT) & FIELD)) return 0;
  team->work(team->arguments, mine & FIELD, thread);
  __atomic_fetch_add(&team->done, 1, __ATOMIC_RELEASE);
  return 1;
}

// Calls work(arguments, piece, thread) for every piece below n (at most 2²⁰ − 1), in any order; returns when all are done.
static void run(struct team *team, work_fn work, const void *arguments, int64_t n) {
  if (n == 1 || team->n_threads == 1) {
    for (int64_t piece = 0; piece < n; piece++) work(arguments, piece, 0);
    return;
  }
  team->work = work;
  team->arguments = arguments;
  __atomic_store_n(&team->done, 0, __ATOMIC_RELAXED);
  team->round++;
  uint64_t ticket = ((uint64_t)team->round << ROUND_SHIFT) | ((uint64_t)n << PIECES_SHIFT);
  __atomic_store_n(&team->ticket, ticket, __ATOMIC_RELEASE);
  while (do_one(team, 0)) {
  }
  for (int spins = 0; __atomic_load_n(&team->done, __ATOMIC_ACQUIRE) < n;) wait_a_little(&spins);
}

// A helper's whole life: takes pieces until the leader has finished.
static void help(struct team *team) {
  int thread = __atomic_fetch_add(&team->joined, 1, __ATOMIC_RELAXED) + 1;
  if (thread >= team->n_threads) return;
  for (int spins = 0; !__atomic_load_n(&team->over, __ATOMIC_ACQUIRE);)
    if (do_one(team, thread))
      spins = 0;
    else
      wait_a_little(&spins);
}

static void finish_team(struct team *team) { __atomic_store_n(&team->over, 1, __ATOMIC_RELEASE); }
