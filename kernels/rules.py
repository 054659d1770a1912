"""Which token may come next: openai/whisper's logit filters and its greedy choice, on whole arrays of logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int = NDArray[np.int32]

N_FIXED = 8  # numbers before the two lists


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

    def filter(self, logits: Float, sampled: list[list[int]]) -> None:
        """Sets to -inf, in place, what each of (n_sequences, n_vocab) may not choose after its `sampled` tokens.

        Source: openai/whisper `decoding.py`, SuppressBlank, SuppressTokens, ApplyTimestampRules, in that order.
        """
        logits[:, self.never(is_first=not sampled[0])] = -np.inf
        if self.timestamp_begin >= 0:
            for row, tokens in zip(logits, sampled, strict=True):
                self._filter_timestamps(row, tokens)

    def _filter_timestamps(self, logits: Float, sampled: list[int]) -> None:
        """ApplyTimestampRules for one sequence: (n_vocab,) logits, changed in place."""
        begin = self.timestamp_begin
        last_was_timestamp = len(sampled) >= 1 and sampled[-1] >= begin
        penultimate_was_timestamp = len(sampled) < 2 or sampled[-2] >= begin
        if last_was_timestamp:
            if penultimate_was_timestamp:  # a pair is complete: text has to follow
                logits[begin:] = -np.inf
            else:  # a segment just ended: the next one has to start, or the text to end
                logits[: self.eot] = -np.inf
        last_timestamp = next((token for token in reversed(sampled) if token >= begin), None)
        if last_timestamp is not None:
            # Time does not run back, and a segment may not be empty, which could loop for ever.
            may_repeat = last_was_timestamp and not penultimate_was_timestamp
            logits[begin : last_timestamp + (not may_repeat)] = -np.inf
        if not sampled:
            logits[:begin] = -np.inf
            if self.max_initial_timestamp_index >= 0:
                logits[begin + self.max_initial_timestamp_index + 1 :] = -np.inf
        # When the timestamps together are likelier than any one text token, a timestamp it is.
        if log_sum_exp(logits[begin:]) > logits[:begin].max():
            logits[:begin] = -np.inf

    def choose(self, logits: Float, tokens: list[list[int]]) -> tuple[list[int], list[float]]:
        """The likeliest allowed token of each sequence, and its log-probability.

        `logits` (n_sequences, n_vocab) are filtered in place; `tokens` are all tokens of each sequence so far. One
        that ended goes on ending, with log-probability 0. Raises ValueError when the rules leave nothing to choose.
        Source: `decoding.py`, GreedyDecoder.
        """
        self.filter(logits, [sequence[self.sample_begin :] for sequence in tokens])
        chosen: list[int] = []
        log_probabilities: list[float] = []
        for row, sequence in zip(logits, tokens, strict=True):
            if sequence[-1] == self.eot:
                chosen.append(self.eot)
                log_probabilities.append(0.0)
                continue
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


class NextTokens(NamedTuple):
    """What the timestamp rules allow a sequence's next token to be; the suppressed tokens are a mask besides."""

    text_from: int  # text tokens below are not allowed
    time_from: int  # timestamps are allowed from here …
    time_below: int  # … to here, this one not
    is_first: bool
    last_was_time: bool
    last_time: int  # the last timestamp sampled; 0 for none
    has_ended: bool
    has_sampled: bool


def next_tokens(rules: Rules, history: Sequence[int], n_vocab: int) -> NextTokens:
    """For a sequence whose tokens so far, prompt included, are `history`."""
    sampled = history[rules.sample_begin :]
    is_first, has_ended, begin = not sampled, bool(history) and history[-1] == rules.eot, rules.timestamp_begin
    if begin < 0:
        return NextTokens(0, n_vocab, n_vocab, is_first, False, 0, has_ended, not is_first)
    last_was = not is_first and sampled[-1] >= begin
    penultimate_was = len(sampled) < 2 or sampled[-2] >= begin
    last = next((token for token in reversed(sampled) if token >= begin), 0)
    is_open = last_was and not penultimate_was  # a timestamp that still needs its pair
    text_low = rules.eot if is_open else 0
    time_low = last + (not is_open) if last else begin
    time_high = begin if last_was and penultimate_was else n_vocab
    if is_first:
        text_low = begin
        if rules.max_initial_timestamp_index >= 0:
            time_high = min(n_vocab, begin + rules.max_initial_timestamp_index + 1)
    return NextTokens(text_low, time_low, time_high, is_first, last_was, last, has_ended, not is_first)
