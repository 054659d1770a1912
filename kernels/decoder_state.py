"""What the decoder's kernels know of its sequences: rows, rules and progress, as the words of one small device buffer.

    0         n_rows, stopped (every sequence has ended), n_chosen, eot, timestamp_begin (n_vocab: no timestamp rules)
    8 + 4r    row r: token, slot of its sequence, position, unused
    72 + 8s   what sequence s may choose: text from, timestamps from, timestamps below, is_first (the mask to use);
              and what that follows from: last_was_timestamp, last timestamp or 0, has_ended, has_sampled

The rules are openai/whisper's (20250625, `decoding.py`) SuppressBlank, SuppressTokens and ApplyTimestampRules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.rules import Rules

MAX_ROWS = 16  # rows one pass computes: the new tokens of a prompt, or one token of each sequence
N_WORDS = 72 + 8 * MAX_ROWS
N_HEADER = 8


def mask_words(rules: Rules, n_vocab: int) -> NDArray[np.uint32]:
    """(2, ceil(n_vocab / 32)): bits of the tokens never allowed; row 1 adds those not allowed at first."""
    bits = np.zeros((2, -(-n_vocab // 32) * 32), np.uint8)
    bits[:, rules.suppress] = 1
    bits[1, rules.begin_suppress] = 1
    if rules.timestamp_begin >= 0 and rules.no_timestamps >= 0:
        bits[:, rules.no_timestamps] = 1
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint32)


def next_words(rules: Rules, history: Sequence[int], n_vocab: int) -> tuple[int, ...]:
    """The 8 state words of a sequence whose tokens so far, prompt included, are `history`."""
    sampled = history[rules.sample_begin :]
    is_first, has_ended, begin = not sampled, bool(history) and history[-1] == rules.eot, rules.timestamp_begin
    if begin < 0:
        return 0, n_vocab, n_vocab, int(is_first), 0, 0, int(has_ended), int(not is_first)
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
    return text_low, time_low, time_high, int(is_first), int(last_was), last, int(has_ended), int(not is_first)


@dataclass(frozen=True)
class Row:
    """One row of a pass: a token of the sequence in this slot, at this position."""

    token: int
    slot: int
    position: int


def state_words(
    rows: Sequence[Row], n_vocab: int, sequences: Sequence[tuple[Rules, Sequence[int]]] = ()
) -> NDArray[np.uint32]:
    """The buffer's words for a pass over `rows`; with each sequence's rules and tokens, for choosing after it too.

    End of text and where timestamps begin are the first sequence's for all.
    """
    words = np.zeros(N_WORDS, np.uint32)
    words[0] = len(rows)
    words[4] = n_vocab
    for i, row in enumerate(rows):
        words[N_HEADER + 4 * i : N_HEADER + 4 * i + 3] = row.token, row.slot, row.position
    for i, (rules, history) in enumerate(sequences):
        words[72 + 8 * i : 80 + 8 * i] = next_words(rules, history, n_vocab)
        if i == 0:
            words[3] = rules.eot
            words[4] = rules.timestamp_begin if rules.timestamp_begin >= 0 else n_vocab
    return words
