"""Whisper's encoder as WGSL dispatches: packed weights, working memory, and the recording from mel to result.

    mel → conv1+GELU → conv2+GELU+positions → each layer: LN+QKV → attention → out+residual → LN+fc1+GELU → fc2+residual
        → final LN → every decoder layer's cross-attention keys and values

The residual stream `x`, what attention adds to it and all sums are f32; other activations and the weights are f16.
A convolution is a product whose rows of input overlap: with time-major input [t][channel], row t of the unfolded one is
3 · channels values from frame t - 1 on.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoint import Checkpoint
from kernels.device import Device, DeviceError
from kernels.recording import Binding, Buffer, Pipeline, Recording, View

Tiling = Literal["subgroup", "tile"]
HEAD_COLUMNS = 64  # of a head in the attention kernels; narrower heads are padded with zeros
SUBGROUP_SIZES = (4, 8, 16)  # that the subgroup kernels are written for
SUBGROUP_ROWS, NORM_ROWS, TILE_ROWS, TILE_COLUMNS = 16, 64, 64, 8  # of a product's workgroup; columns in groups of 8
Array = NDArray[Any]


def choose_tiling(device: Device) -> Tiling:
    """Software adapters get kernels that share loads over a subgroup, hardware those that stage in shared memory."""
    return "subgroup" if device.info.is_software and device.subgroup_size in SUBGROUP_SIZES else "tile"


def padded(n: int) -> int:
    """n rounded up to whole vectors of 8 f16."""
    return -(-n // 8) * 8


def pack(array: Array, n_rows: int | None = None) -> NDArray[np.float16]:
    """(k, n) → f16 with both sizes padded with zeros to multiples of 8 (or to n_rows rows)."""
    k, n = array.shape
    packed = np.zeros((padded(k) if n_rows is None else n_rows, padded(n)), np.float16)
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


class Result:
    """One window's result on the device: `audio_states` f32 (n_audio_ctx, padded n_audio_state), and `layers`, each
    decoder layer's (keys, values) in `cross`, as kernels/cross_memory.py lays them out. `recording` computes it all."""

    def __init__(self, audio_states: Buffer, cross: Buffer, layers: Sequence[tuple[View, View]], recording: Recording):
        self.audio_states, self.cross, self.layers, self.recording = audio_states, cross, layers, recording

    def close(self) -> None:
        """Free its memory. Idempotent."""
        self.audio_states.close()
        self.cross.close()


class EncoderProgram:
    """An encoder's weights and working memory on a device. One recording runs at a time, on the device's thread."""

    def __init__(self, device: Device, checkpoint: Checkpoint, tiling: Tiling | None = None) -> None:
        dims = checkpoint.dims
        if dims.n_audio_state // dims.n_audio_head > HEAD_COLUMNS:
            wide = dims.n_audio_state // dims.n_audio_head
            raise DeviceError(f"encoder heads of {wide} columns: the kernels are for at most {HEAD_COLUMNS}")
        self.device, self.dims = device, dims
        self.tiling: Tiling = tiling or choose_tiling(device)
        self._lanes = device.subgroup_size if self.tiling == "subgroup" else None
        self._owned: list[Buffer] = []
        self._all_params: dict[tuple[int, ...], Buffer] = {}
        self._arrays = checkpoint.arrays
        self.n_channels, self._state = padded(dims.n_mels), padded(dims.n_audio_state)
        self._compile()
        self._load()
        self._allocate()
        del self._arrays
        self._body = Recording(device)
        self._record_convolutions(self._body)
        for layer in self._layers:
            self._record_layer(self._body, layer)

    def _compile(self) -> None:
        """Every pipeline once, on several threads: compiling is most of a first start."""
        with ThreadPoolExecutor() as threads:

            def compile(name: str, **constants: float) -> Future[Pipeline]:
                return threads.submit(self.device.pipeline, f"{name}_{self.tiling}", constants, lanes=self._lanes)

            made = [compile(name) for name in ("gemm", "gemm_norm", "gemm_residual", "attention")]
            made.append(compile("gemm_residual", A_F32=1))
            made.append(threads.submit(self.device.pipeline, "layer_norm"))
        self._gemm, self._gemm_norm, self._gemm_residual, self._attention, self._gemm_residual_f32, self._layer_norm = (
            future.result() for future in made
        )

    def _buffer(self, contents: Array | int, *, uniform: bool = False) -> Buffer:
        self._owned.append(self.device.buffer(contents, uniform=uniform))
        return self._owned[-1]

    def _params(self, *values: int) -> Buffer:
        if values not in self._all_params:
            self._all_params[values] = self._buffer(np.array(values, np.uint32), uniform=True)
        return self._all_params[values]

    def _product(self, weight: Array, bias: Array) -> Product:
        """A (inner, columns) matrix and its bias, packed and uploaded."""
        packed = pack(weight)
        return Product(self._buffer(packed), self._buffer(pack_vector(bias)), *packed.shape)

    def _linear(self, name: str) -> Product:
        return self._product(self._arrays[f"{name}.weight"].T, self._arrays[f"{name}.bias"])

    def _norm(self, name: str) -> Norm:
        gain, shift = (pack_vector(self._arrays[f"{name}.{part}"]) for part in ("weight", "bias"))
        return Norm(self._buffer(gain), self._buffer(shift))

    def _heads(self, columns: Array) -> Array:
        """(k, heads · head columns) → (k, heads · 64): each head's columns padded with zeros."""
        n_head = self.dims.n_audio_head
        split = columns.reshape(len(columns), n_head, -1)
        return np.pad(split, [(0, 0), (0, 0), (0, HEAD_COLUMNS - split.shape[2])]).reshape(len(columns), -1)

    def _layer(self, name: str) -> Layer:
        arrays = self._arrays
        parts = [f"{name}.attn.{part}" for part in ("query", "key", "value")]
        biases = [arrays.get(f"{part}.bias", np.zeros(self.dims.n_audio_state)) for part in parts]  # keys have none
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

    def _load(self) -> None:
        """Upload the weights: f16 products, f32 biases, norms and positions."""
        arrays, dims = self._arrays, self.dims
        self._conv1, self._conv2 = (
            self._product(unfold(arrays[f"encoder.{name}.weight"]), arrays[f"encoder.{name}.bias"])
            for name in ("conv1", "conv2")
        )
        positions = np.zeros((dims.n_audio_ctx, self._state), np.float32)
        positions[:, : dims.n_audio_state] = arrays["encoder.positional_embedding"]
        self._positions = self._buffer(positions)
        self._layers = [self._layer(f"encoder.blocks.{i}") for i in range(dims.n_audio_layer)]
        self._ln_post = self._norm("encoder.ln_post")
        # One layer's keys or values: (n_audio_ctx, n_text_state) f16, from where a binding may start.
        alignment = math.lcm(16, self.device.offset_alignment)
        self._part_bytes = -(-dims.n_audio_ctx * dims.n_text_state * 2 // alignment) * alignment
        layer_bytes = 2 * max(self._part_bytes, self._state * dims.n_text_state * 2)
        self._cross: list[
            tuple[int, int, Product]
        ] = []  # decoder layers [start, stop), and the map to their keys and values
        for start, stop in self.device.row_ranges(dims.n_text_layer, layer_bytes):
            names = [f"decoder.blocks.{i}.cross_attn.{part}" for i in range(start, stop) for part in ("key", "value")]
            biases = [arrays.get(f"{name}.bias", np.zeros(dims.n_text_state)) for name in names]  # keys have none
            weight = np.concatenate([arrays[f"{name}.weight"].T for name in names], axis=1)
            self._cross.append((start, stop, self._product(weight, np.concatenate(biases))))

    def _allocate(self) -> None:
        """Working memory, shared by all windows since they are computed one after the other."""
        n_ctx, state, wide = self.dims.n_audio_ctx, self._state, self.dims.n_audio_head * HEAD_COLUMNS
        # A zero frame on either side of the window is the convolutions' padding.
        self.mel = self._buffer((2 * n_ctx + 2) * self.n_channels * 2)
        self._features = self._buffer((2 * n_ctx + 2) * state * 2)
        self._x = [self._buffer(n_ctx * state * 4) for _ in range(2)]  # the residual stream, before and after a step
        self._normed = self._buffer(n_ctx * state * 4)
        self._qkv = self._buffer(n_ctx * 3 * wide * 2)
        self._attended = self._buffer(n_ctx * wide * 4)
        self._hidden = self._buffer(n_ctx * self._layers[0].up.columns * 2) if self._layers else self._normed

    def result(self) -> Result:
        """Memory for one window's result, and the recording that computes it."""
        dims, recording = self.dims, Recording(self.device)
        states = self.device.buffer(dims.n_audio_ctx * self._state * 4)
        cross = self.device.buffer(2 * dims.n_text_layer * self._part_bytes)
        n_bytes = dims.n_audio_ctx * dims.n_text_state * 2
        parts = [cross.view(i * self._part_bytes, n_bytes) for i in range(2 * dims.n_text_layer)]
        recording.steps.extend(self._body.steps)
        params = self._params(self._state // 4, dims.n_audio_state)
        norm = [self._x[0], self._ln_post.gain, self._ln_post.shift, states, self._normed, params]
        recording.dispatch(self._layer_norm, norm, dims.n_audio_ctx)
        for start, stop, product in self._cross:
            out = cross.view(2 * start * self._part_bytes, 2 * (stop - start) * self._part_bytes)
            self._record_gemm(recording, self._normed, product, out, cross=True)
        return Result(states, cross, list(zip(parts[::2], parts[1::2], strict=True)), recording)

    @property
    def n_dispatches(self) -> int:
        """Launches a window takes."""
        return self._body.n_dispatches + 1 + len(self._cross)

    def compute(self, mel: NDArray[np.float32], result: Result) -> None:
        """(n_mels, 2 · n_audio_ctx) log-mel → `result`, done when this returns. On the device's thread."""
        frames = np.zeros((mel.shape[1] + 2, self.n_channels), np.float16)
        frames[1:-1, : mel.shape[0]] = mel.T
        self.device.write(self.mel, frames)
        reading = self.device.submit(result.recording, reads=[result.audio_states.view(0, 4)])
        assert reading is not None
        reading.wait()

    def read_states(self, result: Result) -> NDArray[np.float32]:
        """(1, n_audio_ctx, n_audio_state) audio states of a computed result."""
        states = self.device.read(result.audio_states).reshape(1, self.dims.n_audio_ctx, self._state)
        return np.ascontiguousarray(states[:, :, : self.dims.n_audio_state])

    def _record_convolutions(self, recording: Recording) -> None:
        n_frames, step, skip = 2 * self.dims.n_audio_ctx, self.n_channels // 4, self._state // 8
        self._record_gemm(
            recording, self.mel, self._conv1, self._features, rows=n_frames, row_step=step, skip=skip, gelu=True
        )
        self._record_residual(
            recording,
            self._features,
            self._conv2,
            self._positions,
            self._x[0],
            row_step=2 * self._state // 4,
            gelu=True,
        )

    def _record_layer(self, recording: Recording, layer: Layer) -> None:
        x, between, n_ctx, n_head = self._x[0], self._x[1], self.dims.n_audio_ctx, self.dims.n_audio_head
        self._record_norm(recording, x, layer.attn_norm, layer.qkv, self._qkv)
        scale = math.log2(math.e) * (self.dims.n_audio_state // n_head) ** -0.5
        params = self._params(n_ctx, n_head, int(np.float32(scale).view(np.uint32)))
        queries = 32 if self._lanes is None else 4 * self._lanes
        recording.dispatch(self._attention, [self._qkv, self._attended, params], -(-n_ctx // queries), n_head)
        self._record_residual(recording, self._attended, layer.out, x, between, a_f32=True)
        self._record_norm(recording, between, layer.mlp_norm, layer.up, self._hidden, gelu=True)
        self._record_residual(recording, self._hidden, layer.down, between, x)

    def _grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Workgroups of a product of that many rows and groups of 8 columns."""
        if self._lanes is None:
            return -(-columns // TILE_COLUMNS), -(-rows // TILE_ROWS)
        return -(-rows // SUBGROUP_ROWS), -(-columns // self._lanes)

    def _record_gemm(
        self,
        recording: Recording,
        a: Binding,
        product: Product,
        out: Binding,
        *,
        rows: int | None = None,
        row_step: int | None = None,
        skip: int = 0,
        gelu: bool = False,
        cross: bool = False,
    ) -> None:
        rows = self.dims.n_audio_ctx if rows is None else rows
        inner, columns = product.inner // 4, product.columns // 8
        part, part_step = (self.dims.n_text_state // 8, self._part_bytes // 16) if cross else (0, 0)
        params = self._params(rows, inner, columns, row_step or inner, skip, int(gelu), part, part_step)
        recording.dispatch(self._gemm, [a, product.weight, product.bias, out, params], *self._grid(rows, columns))

    def _record_residual(
        self,
        recording: Recording,
        a: Buffer,
        product: Product,
        add: Buffer,
        out: Buffer,
        *,
        row_step: int | None = None,
        gelu: bool = False,
        a_f32: bool = False,
    ) -> None:
        rows, inner, columns = self.dims.n_audio_ctx, product.inner // 4, product.columns // 8
        params = self._params(rows, inner, columns, row_step or inner, int(gelu))
        bindings = [a, product.weight, product.bias, add, out, params]
        pipeline = self._gemm_residual_f32 if a_f32 else self._gemm_residual
        recording.dispatch(pipeline, bindings, *self._grid(rows, columns))

    def _record_norm(
        self, recording: Recording, x: Buffer, norm: Norm, product: Product, out: Buffer, *, gelu: bool = False
    ) -> None:
        rows, inner, columns = self.dims.n_audio_ctx, product.inner // 4, product.columns // 8
        params = self._params(rows, inner, columns, self.dims.n_audio_state, int(gelu))
        bindings = [x, norm.gain, norm.shift, product.weight, product.bias]
        if self._lanes is None:
            recording.dispatch(self._gemm_norm, [*bindings, out, params], *self._grid(rows, columns))
        else:  # a workgroup normalises its rows once, for all columns
            recording.dispatch(self._gemm_norm, [*bindings, self._normed, out, params], -(-rows // NORM_ROWS))

    def close(self) -> None:
        """Free weights and working memory. Idempotent."""
        for buffer in self._owned:
            buffer.close()
