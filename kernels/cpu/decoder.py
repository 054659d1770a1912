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
        self._rules: Rules | None = None
        self._start(None)

    def _start(self, encoded: Encoded | None) -> None:
        """Forgets every sequence; the next are over this window."""
        self._encoded = encoded
        self._tokens: Int | None = None  # inputs 1 and 2, consumed by compute
        self._origins: Int | None = None
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
        dims = self._dims
        if index == 3:
            self._rules = Rules.parse(tensor, dims.n_vocab)
            return
        if index not in (0, 1, 2):
            raise ValueError(f"the decoder has no input {index}")
        name, rank = (("audio", 1), ("tokens", 2), ("origins", 1))[index]
        if tensor.dtype != np.int32 or tensor.ndim != rank or tensor.size == 0:
            raise ValueError(
                f"{name} must be i32 of rank {rank} and not empty, found {tensor.dtype} {list(tensor.shape)}"
            )
        if len(tensor) > MAX_SEQUENCES:
            raise ValueError(f"{len(tensor)} sequences are more than {MAX_SEQUENCES}")
        if index == 0:
            self._start(self._attend(tensor))
        elif index == 1:
            if int(tensor.min()) < 0 or int(tensor.max()) >= dims.n_vocab:
                raise ValueError(f"a token is not one of {dims.n_vocab}")
            self._tokens = tensor
        else:
            self._origins = tensor

    def _attend(self, tensor: Int) -> Encoded:
        """The encoder result that input 0 names by its context's handle."""
        if tensor.shape != (1,):
            raise ValueError(f"audio must be one handle, found {list(tensor.shape)}")
        peer = self._peers.get(int(tensor[0]))
        if (
            not isinstance(peer, EncoderContext)
            or peer.encoded is None
            or peer.encoded.arithmetic is not self._arithmetic
        ):
            raise ValueError(f"audio {int(tensor[0])} is no encoder context of this model that has computed")
        return peer.encoded

    def compute(self) -> None:
        """Appends the tokens set, then chooses up to n_steps more. Raises ValueError for inconsistent inputs."""
        encoded, tokens, origins, rules = self._encoded, self._tokens, self._origins, self._rules
        if self._arithmetic is None:
            raise ValueError("this decoder context is closed")
        if encoded is None or tokens is None:
            raise ValueError("audio is not set" if encoded is None else "tokens are not set")
        n_sequences, n_new = tokens.shape
        n_cached = len(self._sequences)
        if origins is not None:
            if len(origins) != n_sequences:
                raise ValueError(f"{len(origins)} origins for {n_sequences} sequences")
            if int(origins.min()) < 0 or int(origins.max()) >= n_cached:
                raise ValueError(f"an origin is not one of {n_cached} cached sequences")
        elif n_cached not in (0, n_sequences):
            raise ValueError(f"{n_sequences} sequences of tokens for {n_cached} cached ones, and no origins")
        if self._position + n_new > self._dims.n_text_ctx:
            raise ValueError(
                f"{self._position} + {n_new} tokens are more than the {self._dims.n_text_ctx} of the text context"
            )
        if rules is not None and rules.n_steps and self._position + n_new < rules.sample_begin:
            raise ValueError(f"sampling would begin at {rules.sample_begin}, after {self._position + n_new} tokens")

        self._tokens = self._origins = None
        self._arrange(n_sequences, origins)
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
        if index == 0:
            return self._last_logits(self._arithmetic)
        if index in (1, 2):
            output = self._chosen if index == 1 else self._log_probabilities
            if output is None:
                raise ValueError("no tokens were chosen: the rules ask for none")
            return output
        if index == 3:
            return self._cross_attention(self._arithmetic)
        if index == 4:
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
        if self._rules is None:
            raise ValueError("rules are not set, and with them end of text")
        assert self._hidden is not None and self._appended is not None
        n_sequences, n_new = self._appended.shape
        result = np.full((n_sequences, n_new), np.nan, np.float32)
        for sequence, tokens in enumerate(self._appended):
            for rows in slices(n_new - 1, LOGIT_ROWS):
                following = tokens[1:][rows]
                probabilities = softmax(arithmetic.logits(self._hidden[sequence, rows], self._rules.eot))
                listed = following < self._rules.eot
                result[sequence, 1:][rows] = 0
                result[sequence, 1:][rows][listed] = probabilities[listed.nonzero()[0], following[listed]]
        return result
