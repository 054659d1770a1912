"""What the decoder's kernels know of its sequences: rows, rules and progress, in one small device buffer.

STATE lays it out as the structs State, Row and Sequence of webgpu/shaders/shared.wgsl do, which explain the fields.
The rules are openai/whisper's (20250625, `decoding.py`) SuppressBlank, SuppressTokens and ApplyTimestampRules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.rules import NextTokens, Rules

MAX_ROWS = 16  # rows one pass computes: the new tokens of a prompt, or one token of each sequence


def _words(*names: str) -> list[tuple[str, str]]:
    return [(name, "<u4") for name in names]


ROW = np.dtype(_words("token", "slot", "position", "unused"))
SEQUENCE = np.dtype(_words(*NextTokens._fields))
STATE = np.dtype(
    [
        *_words("n_rows", "stopped", "n_chosen", "eot", "timestamp_begin", "unused_0", "unused_1", "unused_2"),
        ("rows", ROW, MAX_ROWS),
        ("sequences", SEQUENCE, MAX_ROWS),
    ]
)


def mask_words(rules: Rules, n_vocab: int) -> NDArray[np.uint32]:
    """(2, ceil(n_vocab / 32)): bits of the tokens never allowed; row 1 adds those not allowed at first."""
    bits = np.zeros((2, -(-n_vocab // 32) * 32), np.uint8)
    bits[:, rules.never(is_first=False)] = 1
    bits[1, rules.never(is_first=True)] = 1
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint32)


@dataclass(frozen=True)
class Row:
    """One row of a pass: a token of the sequence in this slot, at this position."""

    token: int
    slot: int
    position: int


def state_words(
    rows: Sequence[Row], n_vocab: int, sequences: Sequence[tuple[Rules, Sequence[int]]] = ()
) -> NDArray[np.uint32]:
    """STATE's words for a pass over `rows`; with each sequence's rules and tokens, for choosing after it too.

    End of text and where timestamps begin are the first sequence's for all.
    """
    state = np.zeros(1, STATE)
    state["n_rows"] = len(rows)
    state["timestamp_begin"] = n_vocab
    for i, row in enumerate(rows):
        state["rows"][0, i] = (row.token, row.slot, row.position, 0)
    for i, (rules, history) in enumerate(sequences):
        state["sequences"][0, i] = rules.next_tokens(history, n_vocab)
        if i == 0:
            state["eot"] = rules.eot
            state["timestamp_begin"] = rules.timestamp_begin if rules.timestamp_begin >= 0 else n_vocab
    return state.view(np.uint32)
