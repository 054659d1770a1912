"""The CPU target's arithmetic in NumPy: clear, for any processor, and the reference for testing the C kernels."""

import numpy as np
from threadpoolctl import threadpool_limits

from kernels.checkpoints.load import Checkpoint
from kernels.cpu.arithmetic import Encoded
from kernels.cpu.cores import Cores, slices
from kernels.cpu.numpy_ops import Float, attention, causal_mask, conv_windows, gelu, layer_norm, linear
from kernels.cpu.weights import Block, load_weights
from kernels.rules import Int, Rules

ROWS = 128  # audio positions per piece: its widest array (4 · n_state) fits into a core's second-level cache
QUERY_ROWS = 128  # query rows per piece of cross-attention, which bounds the memory of its scores


class NumpyWhisper:
    """Arithmetic in NumPy; see arithmetic.py.

    Limits BLAS to one thread for the whole process: its threads meet at a barrier in every call, which on a busy
    machine costs more than the call. Cores distributes the work instead.
    """

    def __init__(self, checkpoint: Checkpoint, cores: Cores) -> None:
        self._dims, self._cores = checkpoint.dims, cores
        self._weights = load_weights(checkpoint)
        self._limits = threadpool_limits(1, user_api="blas")

    def encode(self, mel: Float) -> Encoded:
        """Works in pieces of a few positions. A piece goes through every step that needs no other position (out, MLP,
        the next block's queries, keys and values), so that only attention waits for all pieces.
        """
        dims, weights, cores = self._dims, self._weights, self._cores
        n_state, n_head, d = dims.n_audio_state, dims.n_audio_head, dims.n_audio_state // dims.n_audio_head
        positions = slices(dims.n_audio_ctx, ROWS)
        x = self._embed(mel)
        qkv = np.empty((dims.n_audio_ctx, 3, n_head, d), np.float32)
        attended = np.empty((dims.n_audio_ctx, n_head, d), np.float32)
        d_text = n_state // dims.n_text_head
        cross = np.empty((dims.n_text_layer * 2, dims.n_text_head, dims.n_audio_ctx, d_text), np.float32)

        def begin(rows: slice, block: Block = weights.encoder[0]) -> None:
            normal = layer_norm(x[rows], *block.attn_ln)
            qkv[rows] = linear(normal, *block.qkv).reshape(-1, 3, n_head, d)

        cores.each(begin, positions)

        def attend(piece: tuple[int, slice]) -> None:
            head, rows = piece
            attended[rows, head] = attention(qkv[rows, 0, head], qkv[:, 1, head], qkv[:, 2, head])

        def finish(rows: slice) -> None:
            states = x[rows] = layer_norm(x[rows], *weights.ln_post)
            heads = linear(states, *weights.cross_kv).reshape(len(states), -1, dims.n_text_head, d_text)
            cross[:, :, rows] = heads.transpose(1, 2, 0, 3)

        for layer, block in enumerate(weights.encoder):
            cores.each(attend, [(head, rows) for head in range(n_head) for rows in positions])

            def after(rows: slice, layer: int = layer, block: Block = block) -> None:
                x[rows] += linear(attended[rows].reshape(-1, n_state), *block.out)
                x[rows] += block.mlp(x[rows])
                if layer + 1 < len(weights.encoder):
                    begin(rows, weights.encoder[layer + 1])
                else:
                    finish(rows)

            cores.each(after, positions)
        x.flags.writeable = False
        return Encoded(self, x, cross.reshape(dims.n_text_layer, 2, dims.n_text_head, dims.n_audio_ctx, d_text))

    def _embed(self, mel: Float) -> Float:
        """(n_mels, 2 · n_audio_ctx) log-mel → (n_audio_ctx, n_audio_state): two convolutions, plus the positions."""
        weights, cores = self._weights, self._cores
        windows = conv_windows(np.ascontiguousarray(mel.T), stride=1)
        features = np.empty((len(windows), len(weights.conv1.weight)), np.float32)

        def first(rows: slice) -> None:
            features[rows] = gelu(linear(windows[rows], *weights.conv1))

        cores.each(first, slices(len(windows), ROWS))
        halved = conv_windows(features, stride=2)
        x = np.empty_like(weights.audio_positions)

        def second(rows: slice) -> None:
            x[rows] = gelu(linear(halved[rows], *weights.conv2))
            x[rows] += weights.audio_positions[rows]

        cores.each(second, slices(len(x), ROWS))
        return x

    def append(
        self, tokens: Int, encoded: Encoded, cache: Float, n_past: int, *, is_choosing: bool
    ) -> tuple[Float, list[Float], None]:
        dims, cores, weights = self._dims, self._cores, self._weights
        n_sequences, n_new = tokens.shape
        n_head, n_state = dims.n_text_head, dims.n_text_state
        past, now = n_past, n_past + n_new
        mask = causal_mask(n_new, past) if n_new > 1 else None
        queries: list[Float] = []
        x = weights.token_embedding[tokens.reshape(-1)]
        x.reshape(n_sequences, n_new, n_state)[:] += weights.text_positions[past:now]
        for block, (keys, values), (cross_keys, cross_values) in zip(
            weights.decoder, cache, encoded.cross, strict=True
        ):
            normal = layer_norm(x, *block.attn_ln)
            qkv = linear(normal, *block.qkv, cores).reshape(n_sequences, n_new, 3, n_head, -1)
            q, keys[:, :, past:now], values[:, :, past:now] = qkv.transpose(2, 0, 3, 1, 4)
            attended = attention(q, keys[:, :, :now], values[:, :, :now], mask)
            attended = attended.transpose(0, 2, 1, 3).reshape(-1, n_state)
            x += linear(attended, *block.out, cores)

            assert block.cross_attn_ln and block.cross_query and block.cross_out
            normal = layer_norm(x, *block.cross_attn_ln)
            q = linear(normal, *block.cross_query, cores)
            q = q.reshape(-1, n_head, n_state // n_head).transpose(1, 0, 2)
            queries.append(q[:, :n_new])
            attended = np.empty((n_sequences * n_new, n_head, n_state // n_head), np.float32)
            for rows in slices(n_sequences * n_new, QUERY_ROWS):
                attended[rows] = attention(q[:, rows], cross_keys, cross_values).transpose(1, 0, 2)
            x += linear(attended.reshape(-1, n_state), *block.cross_out, cores)
            x += block.mlp(x, cores)
        return layer_norm(x, *weights.ln).reshape(n_sequences, n_new, n_state), queries, None

    def choose(
        self, last: Float, screened: Float | None, rules: Rules, sequences: list[list[int]]
    ) -> tuple[list[int], list[float]]:
        return rules.choose(self.logits(last, self._dims.n_vocab), sequences)

    def logits(self, hidden: Float, n_vocab: int) -> Float:
        return linear(hidden, self._weights.token_embedding[:n_vocab], None, self._cores)

    def cross_keys(self, encoded: Encoded, layer: int, head: int) -> Float:
        keys: Float = encoded.cross[layer, 0, head]
        return keys
