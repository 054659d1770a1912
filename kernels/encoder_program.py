"""Whisper's encoder as WGSL dispatches: working memory, and the recording from mel to result.

    mel → conv1+GELU → conv2+GELU+positions → each layer: LN+QKV → attention → out+residual → LN+fc1+GELU → fc2+residual
        → final LN → every decoder layer's cross-attention keys and values

Weights are f16, activations and sums f32.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoint import Checkpoint
from kernels.device import Device, DeviceError
from kernels.encoder_weights import HEAD_COLUMNS, EncoderWeights, Layer, Norm, Product, padded
from kernels.recording import Binding, Buffer, Pipeline, Recording, View

Tiling = Literal["subgroup", "tile"]
SUBGROUP_SIZES = (4, 8, 16)  # that the subgroup kernels are written for
SUBGROUP_ROWS, NORM_ROWS, TILE_ROWS, TILE_COLUMNS = 16, 64, 64, 8  # of a product's workgroup; columns in groups of 8
Array = NDArray[Any]


def choose_tiling(device: Device) -> Tiling:
    """Software adapters get kernels that share loads over a subgroup, hardware those that stage in shared memory."""
    return "subgroup" if device.info.is_software and device.subgroup_size in SUBGROUP_SIZES else "tile"


class Result:
    """One window's result on the device: `audio_states` f32 (n_audio_ctx, padded n_audio_state), the first of the
    buffers it owns, and `layers`, each decoder layer's (keys, values, scales) as kernels/cross_memory.py lays them out.
    `recording` computes it all."""

    def __init__(self, buffers: Sequence[Buffer], layers: Sequence[tuple[View, View, View]], recording: Recording):
        self.audio_states, self.layers, self.recording = buffers[0], layers, recording
        self._buffers = buffers

    def close(self) -> None:
        """Free its memory. Idempotent."""
        for buffer in self._buffers:
            buffer.close()


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
        self.n_channels, self._state = padded(dims.n_mels), padded(dims.n_audio_state)
        self._compile()
        self._weights = EncoderWeights(device, checkpoint)
        self._allocate()
        self._body = Recording(device)
        self._record_convolutions(self._body)
        for layer in self._weights.layers:
            self._record_layer(self._body, layer)

    def _compile(self) -> None:
        """Every pipeline once, on several threads: compiling is most of a first start."""
        with ThreadPoolExecutor() as threads:

            def compile(name: str) -> Future[Pipeline]:
                return threads.submit(self.device.pipeline, f"{name}_{self.tiling}", lanes=self._lanes)

            made = [compile(name) for name in ("gemm", "gemm_norm", "gemm_residual", "attention")]
            made += [threads.submit(self.device.pipeline, name) for name in ("layer_norm", "cross_pack")]
        pipelines = [future.result() for future in made]
        self._gemm, self._gemm_norm, self._gemm_residual, self._attention, self._layer_norm, self._cross_pack = (
            pipelines
        )

    def _buffer(self, contents: Array | int, *, uniform: bool = False) -> Buffer:
        self._owned.append(self.device.buffer(contents, uniform=uniform))
        return self._owned[-1]

    def _params(self, *values: int) -> Buffer:
        if values not in self._all_params:
            self._all_params[values] = self._buffer(np.array(values, np.uint32), uniform=True)
        return self._all_params[values]

    def _aligned(self, n_bytes: int) -> int:
        """Rounded up to where a binding may start."""
        step = math.lcm(16, self.device.offset_alignment)
        return -(-n_bytes // step) * step

    def _allocate(self) -> None:
        """Working memory, shared by all windows since they are computed one after the other."""
        n_ctx, state, wide = self.dims.n_audio_ctx, self._state, self.dims.n_audio_head * HEAD_COLUMNS
        # A zero frame on either side of the window is the convolutions' padding.
        self.mel = self._buffer((2 * n_ctx + 2) * self.n_channels * 4)
        self._features = self._buffer((2 * n_ctx + 2) * state * 4)
        self._x = [self._buffer(n_ctx * state * 4) for _ in range(2)]  # the residual stream, before and after a step
        self._normed = self._buffer(n_ctx * state * 4)
        self._qkv = self._buffer(n_ctx * 3 * wide * 4)
        self._attended = self._buffer(n_ctx * wide * 4)
        layers = self._weights.layers
        self._hidden = self._buffer(n_ctx * layers[0].up.columns * 4) if layers else self._normed
        self._keys_values = self._buffer(n_ctx * 4 * max(product.columns for _, _, product in self._weights.cross))
        # One decoder layer's keys or values, (n_audio_ctx, n_text_state) i16, and its scales, as bindings.
        self._part_bytes = self._aligned(n_ctx * self.dims.n_text_state * 2)
        self._scales_bytes = self._aligned(2 * self.dims.n_text_head * n_ctx * 4)

    def result(self) -> Result:
        """Memory for one window's result, and the recording that computes it."""
        dims, recording = self.dims, Recording(self.device)
        states = self.device.buffer(dims.n_audio_ctx * self._state * 4)
        cross = self.device.buffer(2 * dims.n_text_layer * self._part_bytes)
        scales = self.device.buffer(dims.n_text_layer * self._scales_bytes)
        recording.steps.extend(self._body.steps)
        params = self._params(self._state // 4, dims.n_audio_state)
        norm = [self._x[0], self._weights.ln_post.gain, self._weights.ln_post.shift, states, params]
        recording.dispatch(self._layer_norm, norm, dims.n_audio_ctx)
        head8 = dims.n_text_state // dims.n_text_head // 8
        for start, stop, product in self._weights.cross:
            self._record_gemm(recording, states, product, self._keys_values)
            n_parts = 2 * (stop - start)
            steps = self._part_bytes // 16, self._scales_bytes // 4
            bindings: list[Binding] = [
                self._keys_values,
                cross.view(2 * start * self._part_bytes, n_parts * self._part_bytes),
                scales.view(start * self._scales_bytes, (stop - start) * self._scales_bytes),
                self._params(dims.n_audio_ctx, n_parts, dims.n_text_head, head8, *steps),
            ]
            recording.dispatch(self._cross_pack, bindings, -(-dims.n_audio_ctx // 64), dims.n_text_head, n_parts)
        n_bytes, n_scales = dims.n_audio_ctx * dims.n_text_state * 2, 2 * dims.n_text_head * dims.n_audio_ctx * 4
        layers = [
            (
                cross.view(2 * i * self._part_bytes, n_bytes),
                cross.view((2 * i + 1) * self._part_bytes, n_bytes),
                scales.view(i * self._scales_bytes, n_scales),
            )
            for i in range(dims.n_text_layer)
        ]
        return Result([states, cross, scales], layers, recording)

    @property
    def n_dispatches(self) -> int:
        """Launches a window takes."""
        return self._body.n_dispatches + 1 + 2 * len(self._weights.cross)

    def compute(self, mel: NDArray[np.float32], result: Result) -> None:
        """(n_mels, 2 · n_audio_ctx) log-mel → `result`, done when this returns. On the device's thread."""
        frames = np.zeros((mel.shape[1] + 2, self.n_channels), np.float32)
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
            recording, self.mel, self._weights.conv1, self._features, rows=n_frames, row_step=step, skip=skip, gelu=True
        )
        self._record_residual(
            recording,
            self._features,
            self._weights.conv2,
            self._weights.positions,
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
        self._record_residual(recording, self._attended, layer.out, x, between)
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
    ) -> None:
        rows = self.dims.n_audio_ctx if rows is None else rows
        inner, columns = product.inner // 4, product.columns // 8
        params = self._params(rows, inner, columns, row_step or inner, skip, int(gelu))
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
    ) -> None:
        rows, inner, columns = self.dims.n_audio_ctx, product.inner // 4, product.columns // 8
        params = self._params(rows, inner, columns, row_step or inner, int(gelu))
        bindings = [a, product.weight, product.bias, add, out, params]
        recording.dispatch(self._gemm_residual, bindings, *self._grid(rows, columns))

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
        self._weights.close()
        for buffer in self._owned:
            buffer.close()
