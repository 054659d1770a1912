"""Whisper's encoder in NumPy: log-mel → audio states, and every decoder layer's cross-attention keys and values."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoint import Dimensions
from kernels.cpu_weights import Block, Weights
from kernels.numpy_ops import Cores, Float, attention, conv_windows, gelu, layer_norm, linear, slices

ROWS = 128  # audio positions a piece of work: its widest array (4 · n_state) stays in a core's second-level cache


@dataclass(frozen=True)
class Encoded:
    """One audio window's result, never changed afterwards: a decoder keeps it for as long as it needs it."""

    model: object  # whose result it is
    audio_states: Float  # [n_audio_ctx, n_audio_state]
    cross: Float  # [n_text_layer, 2, n_text_head, n_audio_ctx, d]: keys, values


class EncoderContext:
    """in 0 `mel` f32 [1, n_mels, 2 · n_audio_ctx] → out 0 `audio_states` f32 [1, n_audio_ctx, n_audio_state]."""

    def __init__(self, dims: Dimensions, weights: Weights, cores: Cores) -> None:
        self._dims = dims
        self._weights: Weights | None = weights
        self._cores = cores
        self._mel: Float | None = None
        self.encoded: Encoded | None = None

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        """Sets the log-mel window. Raises ValueError for another index, dtype, shape, NaN or ∞, or after close()."""
        if self._weights is None:
            raise ValueError("this encoder context is closed")
        shape = (1, self._dims.n_mels, 2 * self._dims.n_audio_ctx)
        if index != 0:
            raise ValueError(f"the encoder has no input {index}")
        if tensor.dtype != np.float32 or tensor.shape != shape:
            raise ValueError(f"mel must be f32 {list(shape)}, found {tensor.dtype} {list(tensor.shape)}")
        if not np.isfinite(tensor).all():
            raise ValueError("mel holds values that are not finite")
        self._mel = tensor

    def compute(self) -> None:
        """Encodes the window set. Raises ValueError when none is, or after close()."""
        if self._weights is None:
            raise ValueError("this encoder context is closed")
        if self._mel is None:
            raise ValueError("mel is not set")
        self.encoded = encode(self._mel[0], self._dims, self._weights, self._cores)

    def get_output(self, index: int) -> Float:
        """The audio states. Raises ValueError before the first compute or for another index."""
        if index != 0:
            raise ValueError(f"the encoder has no output {index}")
        if self.encoded is None:
            raise ValueError("nothing is computed yet")
        return self.encoded.audio_states[None]

    def close(self) -> None:
        """Lets go of the window and its result; decoders that attend it keep theirs. Idempotent."""
        self._weights = self._mel = self.encoded = None


def encode(mel: Float, dims: Dimensions, weights: Weights, cores: Cores) -> Encoded:
    """(n_mels, 2 · n_audio_ctx) log-mel → audio states and cross-attention keys and values.

    Works in pieces of some positions, each through all that needs no other position (out, MLP, the next block's
    queries, keys and values), so that only attention has to wait for every piece.
    """
    n_state, n_head, d = dims.n_audio_state, dims.n_audio_head, dims.n_audio_state // dims.n_audio_head
    positions = slices(dims.n_audio_ctx, ROWS)
    x = embed(mel, weights, cores)
    qkv = np.empty((dims.n_audio_ctx, 3, n_head, d), np.float32)
    attended = np.empty((dims.n_audio_ctx, n_head, d), np.float32)
    d_text = n_state // dims.n_text_head
    cross = np.empty((dims.n_text_layer * 2, dims.n_text_head, dims.n_audio_ctx, d_text), np.float32)

    def begin(rows: slice, block: Block = weights.encoder[0]) -> None:
        normal = layer_norm(x[rows], block.attn_ln.weight, block.attn_ln.bias)
        qkv[rows] = linear(normal, block.qkv.weight, block.qkv.bias).reshape(-1, 3, n_head, d)

    cores.each(begin, positions)

    def attend(piece: tuple[int, slice]) -> None:
        head, rows = piece
        attended[rows, head] = attention(qkv[rows, 0, head], qkv[:, 1, head], qkv[:, 2, head])

    def finish(rows: slice) -> None:
        states = x[rows] = layer_norm(x[rows], weights.ln_post.weight, weights.ln_post.bias)
        heads = linear(states, weights.cross_kv.weight, weights.cross_kv.bias).reshape(
            len(states), -1, dims.n_text_head, d_text
        )
        cross[:, :, rows] = heads.transpose(1, 2, 0, 3)

    for layer, block in enumerate(weights.encoder):
        cores.each(attend, [(head, rows) for head in range(n_head) for rows in positions])

        def after(rows: slice, layer: int = layer, block: Block = block) -> None:
            x[rows] += linear(attended[rows].reshape(-1, n_state), block.out.weight, block.out.bias)
            x[rows] += block.mlp(x[rows])
            if layer + 1 < len(weights.encoder):
                begin(rows, weights.encoder[layer + 1])
            else:
                finish(rows)

        cores.each(after, positions)
    x.flags.writeable = False
    return Encoded(weights, x, cross.reshape(dims.n_text_layer, 2, dims.n_text_head, dims.n_audio_ctx, d_text))


def embed(mel: Float, weights: Weights, cores: Cores) -> Float:
    """(n_mels, 2 · n_audio_ctx) log-mel → (n_audio_ctx, n_audio_state): two convolutions, and the positions."""
    windows = conv_windows(np.ascontiguousarray(mel.T), stride=1)
    features = np.empty((len(windows), len(weights.conv1.weight)), np.float32)

    def first(rows: slice) -> None:
        features[rows] = gelu(linear(windows[rows], weights.conv1.weight, weights.conv1.bias))

    cores.each(first, slices(len(windows), ROWS))
    halved = conv_windows(features, stride=2)
    x = np.empty_like(weights.audio_positions)

    def second(rows: slice) -> None:
        x[rows] = gelu(linear(halved[rows], weights.conv2.weight, weights.conv2.bias))
        x[rows] += weights.audio_positions[rows]

    cores.each(second, slices(len(x), ROWS))
    return x
