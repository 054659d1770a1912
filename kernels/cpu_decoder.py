"""Whisper's decoder in NumPy: a context is one set of sequences over one audio window, with its keys and values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoint import Dimensions
from kernels.cpu_encoder import Encoded, EncoderContext
from kernels.cpu_weights import Weights
from kernels.numpy_ops import Cores, Float, attention, causal_mask, layer_norm, linear, slices, softmax
from kernels.rules import Int, Rules

MAX_SEQUENCES = 64  # a guest asking for more would only exhaust the host's memory
QUERY_ROWS = 128  # query rows a piece of cross-attention, which bounds the memory of its scores
LOGIT_ROWS = 32  # rows of logits at a time when every position's are wanted


class DecoderContext:
    """The decoder graph's inputs and outputs, as the design lists them; every misuse raises ValueError.

    Nothing a failed call checked has changed: inputs are validated before the cache is touched.
    """

    def __init__(
        self,
        dims: Dimensions,
        alignment_heads: tuple[tuple[int, int], ...],
        weights: Weights,
        cores: Cores,
        peers: Mapping[int, Any],
    ) -> None:
        self._dims = dims
        self._alignment_heads = alignment_heads
        self._weights: Weights | None = weights
        self._cores = cores
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
        self._appended: Int | None = None  # the last compute's input 1, its hidden states, its first sequence's queries
        self._hidden: Float | None = None
        self._queries: list[Float] = []
        self._chosen: Int | None = None
        self._log_probabilities: Float | None = None

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        """Sets audio (0), tokens (1), origins (2) or rules (3). Raises ValueError for what the model cannot take."""
        if self._weights is None:
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
        if not isinstance(peer, EncoderContext) or peer.encoded is None or peer.encoded.model is not self._weights:
            raise ValueError(f"audio {int(tensor[0])} is no encoder context of this model that has computed")
        return peer.encoded

    def compute(self) -> None:
        """Appends the tokens set, then chooses up to n_steps more. Raises ValueError for inconsistent inputs."""
        encoded, tokens, origins, rules = self._encoded, self._tokens, self._origins, self._rules
        if self._weights is None:
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
        self._queries = []
        self._appended = tokens
        self._hidden = self._append(tokens, encoded, self._weights, self._queries)
        self._chosen = self._log_probabilities = None
        if rules is not None and rules.n_steps:
            self._choose(rules, encoded, self._weights)

    def get_output(self, index: int) -> NDArray[Any]:
        """Output `index`. Raises ValueError before a compute that gives it, or for an unknown index."""
        if self._weights is None or self._hidden is None:
            raise ValueError("nothing is computed yet")
        if index == 0:
            return self._last_logits(self._weights)
        if index in (1, 2):
            output = self._chosen if index == 1 else self._log_probabilities
            if output is None:
                raise ValueError("no tokens were chosen: the rules ask for none")
            return output
        if index == 3:
            return self._cross_attention()
        if index == 4:
            return self._token_probabilities(self._weights)
        raise ValueError(f"the decoder has no output {index}")

    def close(self) -> None:
        """Frees the cache and lets go of the window. Idempotent."""
        self._start(None)
        self._weights = None

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

    def _append(self, tokens: Int, encoded: Encoded, weights: Weights, queries: list[Float] | None) -> Float:
        """Runs (n_sequences, n_new) tokens through every block → (n_sequences, n_new, n_state), layer-normed.

        `queries` collects each layer's cross-attention queries of the first sequence, (n_text_head, n_new, d).
        """
        dims, cores, cache = self._dims, self._cores, self._cache
        assert cache is not None
        n_sequences, n_new = tokens.shape
        n_head, n_state = dims.n_text_head, dims.n_text_state
        past, now = self._position, self._position + n_new
        mask = causal_mask(n_new, past) if n_new > 1 else None
        x = weights.token_embedding[tokens.reshape(-1)]
        x.reshape(n_sequences, n_new, n_state)[:] += weights.text_positions[past:now]
        for block, (keys, values), (cross_keys, cross_values) in zip(
            weights.decoder, cache, encoded.cross, strict=True
        ):
            normal = layer_norm(x, block.attn_ln.weight, block.attn_ln.bias)
            qkv = linear(normal, block.qkv.weight, block.qkv.bias, cores).reshape(n_sequences, n_new, 3, n_head, -1)
            q, keys[:, :, past:now], values[:, :, past:now] = qkv.transpose(2, 0, 3, 1, 4)
            attended = attention(q, keys[:, :, :now], values[:, :, :now], mask)
            attended = attended.transpose(0, 2, 1, 3).reshape(-1, n_state)
            x += linear(attended, block.out.weight, block.out.bias, cores)

            assert block.cross_attn_ln and block.cross_query and block.cross_out
            normal = layer_norm(x, block.cross_attn_ln.weight, block.cross_attn_ln.bias)
            q = linear(normal, block.cross_query.weight, block.cross_query.bias, cores)
            q = q.reshape(-1, n_head, n_state // n_head).transpose(1, 0, 2)
            if queries is not None:
                queries.append(q[:, :n_new])
            attended = np.empty((n_sequences * n_new, n_head, n_state // n_head), np.float32)
            for rows in slices(n_sequences * n_new, QUERY_ROWS):
                attended[rows] = attention(q[:, rows], cross_keys, cross_values).transpose(1, 0, 2)
            x += linear(attended.reshape(-1, n_state), block.cross_out.weight, block.cross_out.bias, cores)
            x += block.mlp(x, cores)
        self._position = now
        for sequence, appended in zip(self._sequences, tokens.tolist(), strict=True):
            sequence.extend(appended)
        hidden = layer_norm(x, weights.ln.weight, weights.ln.bias).reshape(n_sequences, n_new, n_state)
        self._last, self._logits = hidden[:, -1], None
        return hidden

    def _last_logits(self, weights: Weights) -> Float:
        """(n_sequences, n_vocab) of the last position, computed once and only if wanted."""
        if self._logits is None:
            assert self._last is not None
            self._logits = linear(self._last, weights.token_embedding, None, self._cores)
        return self._logits

    def _choose(self, rules: Rules, encoded: Encoded, weights: Weights) -> None:
        """Greedy steps: choose, append, and so on; the last choice is not appended."""
        chosen: list[list[int]] = []
        log_probabilities: list[list[float]] = []
        while True:
            tokens, scores = rules.choose(self._last_logits(weights).copy(), self._sequences)
            chosen.append(tokens)
            log_probabilities.append(scores)
            ended = all(token == rules.eot for token in tokens)
            if ended or len(chosen) == rules.n_steps or self._position == self._dims.n_text_ctx:
                break
            self._append(np.array(tokens, np.int32)[:, None], encoded, weights, None)
        self._chosen = np.ascontiguousarray(np.array(chosen, np.int32).T)
        self._log_probabilities = np.ascontiguousarray(np.array(log_probabilities, np.float32).T)

    def _cross_attention(self) -> Float:
        """(n_alignment_heads, n_new, n_audio_ctx) scores of the first sequence before softmax. Source: `timing.py`."""
        assert self._encoded is not None
        return np.stack(
            [
                self._queries[layer][head] @ self._encoded.cross[layer, 0, head].T
                for layer, head in self._alignment_heads
            ]
        )

    def _token_probabilities(self, weights: Weights) -> Float:
        """(n_sequences, n_new): each token's probability among the ids before eot, given those before it.

        NaN for the first, and 0 for a token from eot on, which is not among them. Source: `timing.py`.
        """
        if self._rules is None:
            raise ValueError("rules are not set, and with them end of text")
        assert self._hidden is not None and self._appended is not None
        n_sequences, n_new = self._appended.shape
        result = np.full((n_sequences, n_new), np.nan, np.float32)
        text = weights.token_embedding[: self._rules.eot]
        for sequence, tokens in enumerate(self._appended):
            for rows in slices(n_new - 1, LOGIT_ROWS):
                following = tokens[1:][rows]
                probabilities = softmax(linear(self._hidden[sequence, rows], text, None, self._cores))
                listed = following < self._rules.eot
                result[sequence, 1:][rows] = 0
                result[sequence, 1:][rows][listed] = probabilities[listed.nonzero()[0], following[listed]]
        return result
