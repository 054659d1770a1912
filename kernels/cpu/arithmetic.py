"""The arithmetic that the CPU target's graphs need: NumPy's (numpy_kernels.py) or C's (native_kernels.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kernels.cpu.numpy_ops import Float
from kernels.rules import Int, Rules


@dataclass(frozen=True)
class Encoded:
    """The result of one audio window. Immutable; a decoder keeps it as long as it needs it."""

    arithmetic: "Arithmetic"  # the one that made it
    audio_states: Float  # [n_audio_ctx, n_audio_state]
    cross: Float  # cross-attention keys and values of every decoder layer, in its arithmetic's layout


class Arithmetic(Protocol):
    """A Whisper's encoder and decoder over one set of immutable weights. Any number of threads may call it."""

    def encode(self, mel: Float) -> Encoded:
        """(n_mels, 2 · n_audio_ctx) log-mel → audio states and cross-attention keys and values."""

    def append(
        self, tokens: Int, encoded: Encoded, cache: Float, n_past: int, *, is_choosing: bool
    ) -> tuple[Float, Sequence[Float], Float | None]:
        """(n_sequences, n_new) tokens after `n_past` others → their hidden states, layer-normed, of the same shape.

        `cache` [n_text_layer, 2, n_sequences, n_text_head, n_text_ctx, d] receives their keys and values. The second
        result is each layer's cross-attention queries of the first sequence, (n_text_head, n_new, d), scaled. The third
        is an input of choose(), if `is_choosing` says that it is called next.
        """

    def choose(
        self, last: Float, screened: Float | None, rules: Rules, sequences: list[list[int]]
    ) -> tuple[list[int], list[float]]:
        """The next token of each of `sequences`, and its log-probability; raises ValueError as Rules.choose() does.

        `last` (n_sequences, n_state): the hidden states of the last positions. `screened`: append()'s third result.
        """

    def logits(self, hidden: Float, n_vocab: int) -> Float:
        """(rows, n_state) hidden states → (rows, n_vocab) logits of the vocabulary's first tokens."""

    def cross_keys(self, encoded: Encoded, layer: int, head: int) -> Float:
        """(n_audio_ctx, d) keys of one head of a decoder layer's cross-attention."""
