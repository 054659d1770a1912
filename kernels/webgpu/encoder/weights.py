"""The encoder's weights on the device: matrices in f16, as in Whisper's checkpoints, the rest in f32; sizes padded.

A convolution is a product whose rows of input overlap: with time-major input [t][channel], row t of the unfolded one is
3 · channels values from frame t - 1 on.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.load import Checkpoint
from kernels.webgpu.device import Device
from kernels.webgpu.recording import Buffer

HEAD_COLUMNS = 64  # of a head in the attention kernels; narrower heads are padded with zeros
CROSS_BYTES = 64 << 20  # f32 cross-attention keys and values computed together, before packing
Array = NDArray[Any]


def padded(n: int) -> int:
    """n rounded up to whole vectors of 8 f16."""
    return -(-n // 8) * 8


def pack(array: Array) -> NDArray[np.float16]:
    """(k, n) → f16 with both sizes padded with zeros to multiples of 8."""
    k, n = array.shape
    packed = np.zeros((padded(k), padded(n)), np.float16)
    packed[:k, :n] = array
    return packed


def pack_vector(array: Array) -> NDArray[np.float32]:
    """(n,) → f32 padded with zeros to a multiple of 8."""
    return np.pad(np.asarray(array, np.float32), (0, -len(array) % 8))


def unfold(weight: Array) -> Array:
    """A convolution's (out, in, 3) → (3 · padded in, out), for input whose rows of padded `in` channels overlap."""
    n_out, n_in, width = weight.shape
    unfolded = np.zeros((width, padded(n_in), n_out), weight.dtype)
    unfolded[:, :n_in] = weight.transpose(2, 1, 0)
    return unfolded.reshape(-1, n_out)


@dataclass(frozen=True)
class Product:
    """A linear map on the device: weight (inner, columns) f16 and bias (columns,) f32, sizes multiples of 8."""

    weight: Buffer
    bias: Buffer
    inner: int
    columns: int


@dataclass(frozen=True)
class Norm:
    """A layer norm's gain and shift on the device, f32, padded to a multiple of 8."""

    gain: Buffer
    shift: Buffer


@dataclass(frozen=True)
class Layer:
    """One residual block's weights."""

    attn_norm: Norm
    qkv: Product
    out: Product
    mlp_norm: Norm
    up: Product
    down: Product


class EncoderWeights:
    """An encoder's tensors, and the maps to every decoder layer's cross-attention. close() is idempotent.

    `cross`: decoder layers [start, stop) that are computed together, and the map to their keys and values in turn.
    """

    def __init__(self, device: Device, checkpoint: Checkpoint) -> None:
        arrays, dims = checkpoint.arrays, checkpoint.dims
        self._device, self._arrays, self._dims = device, arrays, dims
        self._buffers: list[Buffer] = []
        self.conv1, self.conv2 = (
            self._product(unfold(arrays[f"encoder.{name}.weight"]), arrays[f"encoder.{name}.bias"])
            for name in ("conv1", "conv2")
        )
        positions = np.zeros((dims.n_audio_ctx, padded(dims.n_audio_state)), np.float32)
        positions[:, : dims.n_audio_state] = arrays["encoder.positional_embedding"]
        self.positions = self._put(positions)
        self.layers = [self._layer(f"encoder.blocks.{i}") for i in range(dims.n_audio_layer)]
        self.ln_post = self._norm("encoder.ln_post")
        layer_bytes = 2 * dims.n_text_state * max(4 * dims.n_audio_ctx, 2 * padded(dims.n_audio_state))
        at_once = max(1, min(device.max_binding, CROSS_BYTES) // layer_bytes)
        starts = range(0, dims.n_text_layer, at_once)
        stops = [min(start + at_once, dims.n_text_layer) for start in starts]
        self.cross = [(start, stop, self._cross(start, stop)) for start, stop in zip(starts, stops, strict=True)]
        del self._arrays

    def _put(self, array: Array) -> Buffer:
        self._buffers.append(self._device.buffer(array))
        return self._buffers[-1]

    def _product(self, weight: Array, bias: Array) -> Product:
        """A (inner, columns) matrix and its bias, packed and uploaded."""
        packed = pack(weight)
        return Product(self._put(packed), self._put(pack_vector(bias)), *packed.shape)

    def _linear(self, name: str) -> Product:
        return self._product(self._arrays[f"{name}.weight"].T, self._arrays[f"{name}.bias"])

    def _norm(self, name: str) -> Norm:
        gain, shift = (pack_vector(self._arrays[f"{name}.{part}"]) for part in ("weight", "bias"))
        return Norm(self._put(gain), self._put(shift))

    def _heads(self, columns: Array) -> Array:
        """(k, heads · head columns) → (k, heads · 64): each head's columns padded with zeros."""
        n_head = self._dims.n_audio_head
        split = columns.reshape(len(columns), n_head, -1)
        return np.pad(split, [(0, 0), (0, 0), (0, HEAD_COLUMNS - split.shape[2])]).reshape(len(columns), -1)

    def _layer(self, name: str) -> Layer:
        arrays = self._arrays
        parts = [f"{name}.attn.{part}" for part in ("query", "key", "value")]
        biases = [arrays.get(f"{part}.bias", np.zeros(self._dims.n_audio_state)) for part in parts]  # keys have none
        weight = np.concatenate([self._heads(arrays[f"{part}.weight"].T) for part in parts], axis=1)
        bias = np.concatenate([self._heads(bias[None])[0] for bias in biases])
        out = self._heads(arrays[f"{name}.attn.out.weight"]).T
        return Layer(
            self._norm(f"{name}.attn_ln"),
            self._product(weight, bias),
            self._product(out, arrays[f"{name}.attn.out.bias"]),
            self._norm(f"{name}.mlp_ln"),
            self._linear(f"{name}.mlp.0"),
            self._linear(f"{name}.mlp.2"),
        )

    def _cross(self, start: int, stop: int) -> Product:
        """The keys and values of decoder layers [start, stop), one after the other."""
        names = [f"decoder.blocks.{i}.cross_attn.{part}" for i in range(start, stop) for part in ("key", "value")]
        biases = [self._arrays.get(f"{name}.bias", np.zeros(self._dims.n_text_state)) for name in names]
        weight = np.concatenate([self._arrays[f"{name}.weight"].T for name in names], axis=1)
        return self._product(weight, np.concatenate(biases))

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.close()
