"""Which token may come next: openai/whisper's logit filters and its greedy choice.

The same rules stand in guest/src/rules.rs, in decoder_choose.wgsl and in choice.h; tests/rules.json tests all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int = NDArray[np.int32]

N_FIXED = 8  # numbers before the two lists


class NextTokens(NamedTuple):
    """What may come next in a sequence, the suppressed tokens aside."""

    text_from: int  # text tokens below are not allowed
    time_from: int  # timestamps are allowed from here …
    time_below: int  # … to here, this one not
    is_first: bool
    last_was_time: bool
    last_time: int  # the last timestamp sampled; 0 for none
    has_ended: bool


@dataclass(frozen=True)
class Rules:
    """The decoder's input 3, parsed. Token ids are the model's; -1 switches a thing off where that is said."""

    n_steps: int  # greedy tokens to choose in one compute; 0 = none
    sample_begin: int  # how many tokens of a sequence precede the first sampled one
    eot: int
    timestamp_begin: int  # -1: no timestamp rules
    no_timestamps: int  # -1: the model has no such token
    max_initial_timestamp_index: int  # -1: no limit
    suppress: Int
    begin_suppress: Int  # for the first sampled token only

    @staticmethod
    def parse(tensor: NDArray[Any], n_vocab: int) -> "Rules":
        """The rules in an i32 [8 + n_suppress + n_begin_suppress] tensor. Raises ValueError if inconsistent."""
        if tensor.dtype != np.int32 or tensor.ndim != 1 or len(tensor) < N_FIXED:
            raise ValueError(f"rules must be i32 [{N_FIXED} + …], found {tensor.dtype} {list(tensor.shape)}")
        n_steps, sample_begin, eot, timestamp_begin, no_timestamps, limit, n_suppress, n_begin = tensor[
            :N_FIXED
        ].tolist()
        if n_suppress < 0 or n_begin < 0 or len(tensor) != N_FIXED + n_suppress + n_begin:
            raise ValueError(f"rules of {len(tensor)} numbers cannot hold {n_suppress} and {n_begin} suppressed tokens")
        if n_steps < 0 or sample_begin < 0 or limit < -1:
            raise ValueError("rules: n_steps and sample_begin must not be negative, nor the timestamp limit below -1")
        if not 0 <= eot < n_vocab:
            raise ValueError(f"rules: end of text {eot} is not one of {n_vocab} tokens")
        if not -1 <= timestamp_begin < n_vocab or not -1 <= no_timestamps < n_vocab:
            raise ValueError(f"rules: timestamp tokens {timestamp_begin}, {no_timestamps} are not among {n_vocab}")
        if -1 < timestamp_begin <= eot:
            raise ValueError(f"rules: timestamps must come after end of text, found {timestamp_begin} and {eot}")
        listed = tensor[N_FIXED:]
        if len(listed) and (int(listed.min()) < 0 or int(listed.max()) >= n_vocab):
            raise ValueError(f"rules: a suppressed token is not one of {n_vocab}")
        return Rules(
            *(n_steps, sample_begin, eot, timestamp_begin, no_timestamps, limit),
            listed[:n_suppress].copy(),
            listed[n_suppress:].copy(),
        )

    def never(self, is_first: bool) -> Int:
        """What no timestamp has to do with: ids that may not come next, or not as the first sampled token."""
        lists = [self.suppress, self.begin_suppress] if is_first else [self.suppress]
        if self.timestamp_begin >= 0 and self.no_timestamps >= 0:
            lists.append(np.array([self.no_timestamps], np.int32))
        return np.concatenate(lists)

    def next_tokens(self, history: Sequence[int], n_vocab: int) -> NextTokens:
        """For a sequence whose tokens so far, prompt included, are `history`.

        Source: openai/whisper `decoding.py`, ApplyTimestampRules.
        """
        sampled = history[self.sample_begin :]
        is_first, has_ended, begin = not sampled, bool(history) and history[-1] == self.eot, self.timestamp_begin
        if begin < 0:
            return NextTokens(0, n_vocab, n_vocab, is_first, False, 0, has_ended)
        last_was = not is_first and sampled[-1] >= begin
        penultimate_was = len(sampled) < 2 or sampled[-2] >= begin
        last = next((token for token in reversed(sampled) if token >= begin), 0)
        is_open = last_was and not penultimate_was  # a segment ended: the next one has to start, or the text to end
        text_from = self.eot if is_open else 0
        # Time does not run back, and a segment may not be empty, which could loop for ever.
        time_from = last + (not is_open) if last else begin
        time_below = begin if last_was and penultimate_was else n_vocab  # a pair is complete: text has to follow
        if is_first:
            text_from = begin
            if self.max_initial_timestamp_index >= 0:
                time_below = min(n_vocab, begin + self.max_initial_timestamp_index + 1)
        return NextTokens(text_from, time_from, time_below, is_first, last_was, last, has_ended)

    def _filter(self, logits: Float, allowed: NextTokens) -> None:
        """Sets to -inf, in place, the (n_vocab,) logits of what may not come next."""
        logits[self.never(allowed.is_first)] = -np.inf
        begin = self.timestamp_begin
        if begin >= 0:
            logits[: allowed.text_from] = -np.inf
            logits[begin : allowed.time_from] = -np.inf
            logits[allowed.time_below :] = -np.inf
            # When the timestamps together are likelier than any one text token, a timestamp it is.
            if log_sum_exp(logits[begin:]) > logits[:begin].max():
                logits[:begin] = -np.inf

    def choose(self, logits: Float, tokens: list[list[int]]) -> tuple[list[int], list[float]]:
        """The likeliest allowed token of each sequence, and its log-probability.

        `logits` (n_sequences, n_vocab) are filtered in place; `tokens` are all tokens of each sequence so far. One
        that ended goes on ending, with log-probability 0. Raises ValueError when the rules leave nothing to choose.
        Source: `decoding.py`, GreedyDecoder.
        """
        chosen: list[int] = []
        log_probabilities: list[float] = []
        for row, sequence in zip(logits, tokens, strict=True):
            allowed = self.next_tokens(sequence, len(row))
            if allowed.has_ended:
                chosen.append(self.eot)
                log_probabilities.append(0.0)
                continue
            self._filter(row, allowed)
            best = int(row.argmax())
            if row[best] == -np.inf:
                raise ValueError("the rules leave no token to choose")
            chosen.append(best)
            log_probabilities.append(float(row[best]) - log_sum_exp(row))
        return chosen, log_probabilities


def log_sum_exp(x: Float) -> float:
    """log Σ exp(x) of one row; -inf when every element is."""
    highest = x.max()
    if highest == -np.inf:
        return -np.inf
    shifted = x - highest
    return float(np.log(np.add.reduce(np.exp(shifted, out=shifted))) + highest)
