"""Whisper's decoder on the CPU: a context is one set of sequences over one audio window, with its keys and values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernels import inputs
from kernels.checkpoints.load import Dimensions
from kernels.cpu.arithmetic import Arithmetic, Encoded
from kernels.cpu.cores import slices
from kernels.cpu.encoder import EncoderContext
from kernels.cpu.numpy_ops import Float, softmax
from kernels.rules import Int, Rules

MAX_SEQUENCES = 64  # more would only exhaust the host's memory
LOGIT_ROWS = 32  # rows of logits at a time when computing every position's


class DecoderContext(inputs.DecoderContext):
    """One guest's sequences over one encoder result."""

    def __init__(
        self,
        dims: Dimensions,
        alignment_heads: tuple[tuple[int, int], ...],
        arithmetic: Arithmetic,
        peers: Mapping[int, Any],
    ) -> None:
        super().__init__(dims, MAX_SEQUENCES)
        self._alignment_heads = alignment_heads
        self._arithmetic: Arithmetic | None = arithmetic
        self._peers = peers
        self._start(None)

    def _start(self, encoded: Encoded | None) -> None:
        """Drop every sequence; the next ones are over this window."""
        self._encoded = encoded
        self._inputs.forget()
        self._sequences: list[list[int]] = []  # each sequence's appended tokens
        self._cache: Float | None = None  # [n_text_layer, 2, n_sequences, n_text_head, n_text_ctx, d]
        self._position = 0
        self._last: Float | None = None  # (n_sequences, n_state): hidden states of the next logits
        self._logits: Float | None = None  # of self._last, once computed
        self._screened: Float | None = None  # append()'s third result, for choose()
        self._hidden: Float | None = None  # the last compute's hidden states and first sequence's queries
        self._queries: Sequence[Float] = ()
        self._computed = self._chosen = self._log_probabilities = None

    def _attend(self, handle: int) -> None:
        peer = self._peers.get(handle)
        if (
            not isinstance(peer, EncoderContext)
            or peer.encoded is None
            or peer.encoded.arithmetic is not self._arithmetic
        ):
            raise ValueError(f"audio {handle} isn't an encoder context of this model that has computed")
        self._start(peer.encoded)

    def compute(self) -> None:
        """Append the tokens, then choose up to n_steps more. Raises ValueError for inconsistent inputs."""
        encoded, rules = self._encoded, self._inputs.rules
        if self._arithmetic is None:
            raise ValueError("this decoder context is closed")
        if encoded is None:
            raise ValueError("audio is not set")
        tokens, origins = self._inputs.take(len(self._sequences), self._position)
        self._arrange(len(tokens), origins)
        is_choosing = rules is not None and rules.n_steps > 0
        self._hidden, self._queries = self._append(tokens, encoded, self._arithmetic, is_choosing)
        self._computed = tokens
        self._chosen = self._log_probabilities = None
        if rules is not None and rules.n_steps:
            self._choose(rules, encoded, self._arithmetic)

    def close(self) -> None:
        """Free the cache and release the window. Idempotent."""
        self._start(None)
        self._is_closed, self._arithmetic = True, None

    def _arrange(self, n_sequences: int, origins: Int | None) -> None:
        """Make the cache hold `n_sequences`, each continuing the one at its origin."""
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
        """Run (n_sequences, n_new) tokens through every block → hidden states, the first sequence's queries."""
        assert self._cache is not None
        hidden, queries, self._screened = arithmetic.append(
            tokens, encoded, self._cache, self._position, is_choosing=is_choosing
        )
        self._position += tokens.shape[1]
        for sequence, appended in zip(self._sequences, tokens.tolist(), strict=True):
            sequence.extend(appended)
        self._last, self._logits = hidden[:, -1], None
        return hidden, queries

    def _last_logits(self) -> Float:
        if self._logits is None:
            assert self._last is not None and self._arithmetic is not None
            self._logits = self._arithmetic.logits(self._last, self._dims.n_vocab)
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

    def _cross_attention(self) -> Float:
        encoded, arithmetic = self._encoded, self._arithmetic
        assert encoded is not None and arithmetic is not None
        return np.stack(
            [
                self._queries[layer][head] @ arithmetic.cross_keys(encoded, layer, head).T
                for layer, head in self._alignment_heads
            ]
        )

    def _token_probabilities(self, eot: int) -> Float:
        assert self._hidden is not None and self._computed is not None and self._arithmetic is not None
        n_sequences, n_new = self._computed.shape
        result = np.full((n_sequences, n_new), np.nan, np.float32)
        for sequence, tokens in enumerate(self._computed):
            for rows in slices(n_new - 1, LOGIT_ROWS):
                following = tokens[1:][rows]
                probabilities = softmax(self._arithmetic.logits(self._hidden[sequence, rows], eot))
                listed = following < eot
                result[sequence, 1:][rows] = 0
                result[sequence, 1:][rows][listed] = probabilities[listed.nonzero()[0], following[listed]]
        return result
