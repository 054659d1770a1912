"""Whisper's decoder on the CPU: a context is one set of sequences over one audio window, with its keys and values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.load import Dimensions
from kernels.cpu.arithmetic import Arithmetic, Encoded
from kernels.cpu.cores import slices
from kernels.cpu.encoder import EncoderContext
from kernels.cpu.numpy_ops import Float, softmax
from kernels.inputs import CHOSEN, CROSS_ATTENTION, LOG_PROBABILITIES, LOGITS, TOKEN_PROBABILITIES, DecoderInputs
from kernels.rules import Int, Rules

MAX_SEQUENCES = 64  # a guest asking for more would only exhaust the host's memory
LOGIT_ROWS = 32  # rows of logits at a time when every position's are wanted


class DecoderContext:
    """The decoder graph's inputs and outputs, as the design lists them; every misuse raises ValueError.

    Nothing a failed call checked has changed: inputs are validated before the cache is touched.
    """

    def __init__(
        self,
        dims: Dimensions,
        alignment_heads: tuple[tuple[int, int], ...],
        arithmetic: Arithmetic,
        peers: Mapping[int, Any],
    ) -> None:
        self._dims = dims
        self._alignment_heads = alignment_heads
        self._arithmetic: Arithmetic | None = arithmetic
        self._peers = peers
        self._inputs = DecoderInputs(dims, MAX_SEQUENCES)
        self._start(None)

    def _start(self, encoded: Encoded | None) -> None:
        """Forgets every sequence; the next are over this window."""
        self._encoded = encoded
        self._inputs.forget()
        self._sequences: list[list[int]] = []  # every token appended, of each sequence
        self._cache: Float | None = None  # [n_text_layer, 2, n_sequences, n_text_head, n_text_ctx, d]
        self._position = 0
        self._last: Float | None = None  # (n_sequences, n_state): hidden states whose logits come next
        self._logits: Float | None = None  # of self._last, once computed
        self._screened: Float | None = None  # what its arithmetic may choose by
        self._appended: Int | None = None  # the last compute's input 1, its hidden states, its first sequence's queries
        self._hidden: Float | None = None
        self._queries: Sequence[Float] = ()
        self._chosen: Int | None = None
        self._log_probabilities: Float | None = None

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        """Sets audio (0), tokens (1), origins (2) or rules (3). Raises ValueError for what the model cannot take."""
        if self._arithmetic is None:
            raise ValueError("this decoder context is closed")
        handle = self._inputs.set(index, tensor)
        if handle is not None:
            self._start(self._attend(handle))

    def _attend(self, handle: int) -> Encoded:
        """The result of the encoder context with that handle."""
        peer = self._peers.get(handle)
        if (
            not isinstance(peer, EncoderContext)
            or peer.encoded is None
            or peer.encoded.arithmetic is not self._arithmetic
        ):
            raise ValueError(f"audio {handle} is no encoder context of this model that has computed")
        return peer.encoded

    def compute(self) -> None:
        """Appends the tokens set, then chooses up to n_steps more. Raises ValueError for inconsistent inputs."""
        encoded, rules = self._encoded, self._inputs.rules
        if self._arithmetic is None:
            raise ValueError("this decoder context is closed")
        if encoded is None:
            raise ValueError("audio is not set")
        tokens, origins = self._inputs.take(len(self._sequences), self._position)
        self._arrange(len(tokens), origins)
        self._appended = tokens
        is_choosing = rules is not None and rules.n_steps > 0
        self._hidden, self._queries = self._append(tokens, encoded, self._arithmetic, is_choosing)
        self._chosen = self._log_probabilities = None
        if rules is not None and rules.n_steps:
            self._choose(rules, encoded, self._arithmetic)

    def get_output(self, index: int) -> NDArray[Any]:
        """Output `index`. Raises ValueError before a compute that gives it, or for an unknown index."""
        if self._arithmetic is None or self._hidden is None:
            raise ValueError("nothing is computed yet")
        if index == LOGITS:
            return self._last_logits(self._arithmetic)
        if index in (CHOSEN, LOG_PROBABILITIES):
            output = self._chosen if index == CHOSEN else self._log_probabilities
            if output is None:
                raise ValueError("no tokens were chosen: the rules ask for none")
            return output
        if index == CROSS_ATTENTION:
            return self._cross_attention(self._arithmetic)
        if index == TOKEN_PROBABILITIES:
            return self._token_probabilities(self._arithmetic)
        raise ValueError(f"the decoder has no output {index}")

    def close(self) -> None:
        """Frees the cache and lets go of the window. Idempotent."""
        self._start(None)
        self._arithmetic = None

    def _arrange(self, n_sequences: int, origins: Int | None) -> None:
        """Makes the cache hold `n_sequences`, each continuing the one at its origin."""
        dims, cache = self._dims, self._cache
        if origins is None:
            origins = np.arange(len(self._sequences), dtype=np.int32)
        if not self._sequences:
            self._sequences = [[] for _ in range(n_sequences)]
        elif len(origins) != len(self._sequences) or (origins != np.arange(len(origins))).any():
            self._sequences = [list(self._sequences[origin]) for origin in origins.tolist()]
        else:
            return
        shape = (
            *(dims.n_text_layer, 2, n_sequences, dims.n_text_head),
            *(dims.n_text_ctx, dims.n_text_state // dims.n_text_head),
        )
        used = slice(0, self._position)
        kept = None if cache is None else cache[:, :, origins, :, used]
        if cache is None or cache.shape != shape:
            cache = self._cache = np.empty(shape, np.float32)
        if kept is not None:
            cache[..., used, :] = kept

    def _append(
        self, tokens: Int, encoded: Encoded, arithmetic: Arithmetic, is_choosing: bool
    ) -> tuple[Float, Sequence[Float]]:
        """Runs (n_sequences, n_new) tokens through every block → hidden states, the first sequence's queries."""
        assert self._cache is not None
        hidden, queries, self._screened = arithmetic.append(
            tokens, encoded, self._cache, self._position, is_choosing=is_choosing
        )
        self._position += tokens.shape[1]
        for sequence, appended in zip(self._sequences, tokens.tolist(), strict=True):
            sequence.extend(appended)
        self._last, self._logits = hidden[:, -1], None
        return hidden, queries

    def _last_logits(self, arithmetic: Arithmetic) -> Float:
        """(n_sequences, n_vocab) of the last position, computed once and only if wanted."""
        if self._logits is None:
            assert self._last is not None
            self._logits = arithmetic.logits(self._last, self._dims.n_vocab)
        return self._logits

    def _choose(self, rules: Rules, encoded: Encoded, arithmetic: Arithmetic) -> None:
        """Greedy steps: choose, append, and so on; the last choice is not appended."""
        chosen: list[list[int]] = []
        log_probabilities: list[list[float]] = []
        while True:
            assert self._last is not None
            tokens, scores = arithmetic.choose(self._last, self._screened, rules, self._sequences)
            chosen.append(tokens)
            log_probabilities.append(scores)
            ended = all(token == rules.eot for token in tokens)
            if ended or len(chosen) == rules.n_steps or self._position == self._dims.n_text_ctx:
                break
            self._append(np.array(tokens, np.int32)[:, None], encoded, arithmetic, True)
        self._chosen = np.ascontiguousarray(np.array(chosen, np.int32).T)
        self._log_probabilities = np.ascontiguousarray(np.array(log_probabilities, np.float32).T)

    def _cross_attention(self, arithmetic: Arithmetic) -> Float:
        """(n_alignment_heads, n_new, n_audio_ctx) scores of the first sequence before softmax. Source: `timing.py`."""
        assert self._encoded is not None
        return np.stack(
            [
                self._queries[layer][head] @ arithmetic.cross_keys(self._encoded, layer, head).T
                for layer, head in self._alignment_heads
            ]
        )

    def _token_probabilities(self, arithmetic: Arithmetic) -> Float:
        """(n_sequences, n_new): each token's probability among the ids before eot, given those before it.

        NaN for the first, and 0 for a token from eot on, which is not among them. Source: `timing.py`.
        """
        rules = self._inputs.rules
        if rules is None:
            raise ValueError("rules are not set, and with them end of text")
        assert self._hidden is not None and self._appended is not None
        n_sequences, n_new = self._appended.shape
        result = np.full((n_sequences, n_new), np.nan, np.float32)
        for sequence, tokens in enumerate(self._appended):
            for rows in slices(n_new - 1, LOGIT_ROWS):
                following = tokens[1:][rows]
                probabilities = softmax(arithmetic.logits(self._hidden[sequence, rows], rules.eot))
                listed = following < rules.eot
                result[sequence, 1:][rows] = 0
                result[sequence, 1:][rows][listed] = probabilities[listed.nonzero()[0], following[listed]]
        return result
