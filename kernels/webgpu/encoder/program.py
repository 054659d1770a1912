"""Whisper's encoder as WGSL dispatches: the recording from log-mel to result, for one window or several together.

    mel → conv1+GELU → conv2+GELU+positions → each layer: LN+QKV → attention → out+residual → LN+fc1+GELU → fc2+residual
        → final LN → every decoder layer's cross-attention keys and values

Windows of several requests go through all but the last line in the same launches, one's rows after another's, because
a single window does not fill a large GPU. Weights are f16, activations and sums f32.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.load import Checkpoint
from kernels.webgpu.device import Device, DeviceError
from kernels.webgpu.encoder.memory import F32_BYTES, Result, WorkingMemory, floats_a_window, windows_that_fit
from kernels.webgpu.encoder.weights import HEAD_COLUMNS, EncoderWeights, Layer, Norm, Product, padded
from kernels.webgpu.recording import Binding, Buffer, Compiler, Dispatch, Pipeline, Recording
from kernels.webgpu.wgsl import SUBGROUP, WORKGROUP, Parameters, Reduction

SUBGROUP_SIZES = (4, 8, 16)  # sizes that the subgroup kernels are written for
SUBGROUP_ROWS, NORM_ROWS, TILE_ROWS, TILE_COLUMNS = 16, 64, 64, 8  # of a product's workgroup; columns in groups of 8
MOST_WINDOWS = {"discrete": 16, "integrated": 4, "other": 4, "software": 1}  # computed together, by kind of adapter
TOGETHER_BYTES = 512 << 20  # maximum working memory for several windows


def choose_reduction(device: Device) -> Reduction:
    """Software adapters get kernels that share loads over a subgroup, hardware those that use workgroup memory."""
    return SUBGROUP if device.info.is_software and device.subgroup_size in SUBGROUP_SIZES else WORKGROUP


def compiled(device: Compiler, lanes: int | None) -> dict[str, Pipeline]:
    """Every pipeline by its use, compiled on several threads: compiling is most of a first start.

    `lanes`: of the subgroup; None for the kernels that need no subgroups.
    """
    cut: Parameters = {"reduction": WORKGROUP} if lanes is None else {"reduction": SUBGROUP, "lanes": lanes}
    kernels: dict[str, tuple[str, Parameters]] = {
        "product": ("encoder_product", {"residual": False, **cut}),
        "residual": ("encoder_product", {"residual": True, **cut}),
        "norm_product": ("encoder_norm_product", cut),
        "attention": ("encoder_attention", cut),
        "layer_norm": ("encoder_layer_norm", {}),
        "cross_pack": ("encoder_cross_pack", {}),
    }
    with ThreadPoolExecutor() as threads:
        made = {use: threads.submit(device.pipeline, *kernel) for use, kernel in kernels.items()}
    return {use: future.result() for use, future in made.items()}


def choose_windows(device: Device, floats: Mapping[str, int]) -> int:
    """How many windows, given the floats in each buffer, to compute together: enough to keep the adapter busy."""
    return min(MOST_WINDOWS[device.info.kind], windows_that_fit(floats, device.max_binding, TOGETHER_BYTES))


class EncoderProgram:
    """An encoder's weights and working memory on a device. One recording runs at a time, on the device's thread."""

    def __init__(
        self, device: Device, checkpoint: Checkpoint, reduction: Reduction | None = None, windows: int | None = None
    ) -> None:
        """`windows`: maximum computed together; None chooses by the adapter."""
        dims = checkpoint.dims
        if dims.n_audio_state // dims.n_audio_head > HEAD_COLUMNS:
            wide = dims.n_audio_state // dims.n_audio_head
            raise DeviceError(f"encoder heads of {wide} columns: the kernels are for at most {HEAD_COLUMNS}")
        self.device, self.dims = device, dims
        self.reduction = reduction or choose_reduction(device)
        self._floats = floats_a_window(dims, is_normed_apart=self.reduction == SUBGROUP)
        self.most_windows = windows or choose_windows(device, self._floats)
        self._lanes = device.subgroup_size if self.reduction == SUBGROUP else None
        self._all_params: dict[tuple[int, ...], Buffer] = {}
        self.n_channels, self._state = padded(dims.n_mels), padded(dims.n_audio_state)
        self._pipelines = compiled(device, self._lanes)
        self._weights = EncoderWeights(device, checkpoint)
        self._memory = WorkingMemory(device, self._floats, 1)
        columns = max(product.columns for _, _, product in self._weights.cross)
        self._keys_values = device.buffer(dims.n_audio_ctx * columns * F32_BYTES)  # of one window, before packing

    def _params(self, *values: int) -> Buffer:
        if values not in self._all_params:
            self._all_params[values] = self.device.buffer(np.array(values, np.uint32), uniform=True)
        return self._all_params[values]

    def result(self) -> Result:
        """Memory for one window's result."""
        return Result(self.device, self.dims)

    @property
    def n_dispatches(self) -> int:
        """Launches for a single window."""
        return len(self._body(1)) + 1 + 2 * len(self._weights.cross)

    def frames(self, mel: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n_mels, 2 · n_audio_ctx) log-mel → as the device reads it, (2 · n_audio_ctx + 2, padded n_mels)."""
        frames = np.zeros((mel.shape[1] + 2, self.n_channels), np.float32)
        frames[1:-1, : mel.shape[0]] = mel.T
        return frames

    def compute(self, windows: Sequence[tuple[NDArray[np.float32], Result]]) -> None:
        """Each window's frames → its result, done on return; at most `most_windows`. On the device's thread."""
        self._make_room(len(windows))
        for start in range(0, len(windows), self._memory.capacity):
            self._compute(windows[start : start + self._memory.capacity])

    def _make_room(self, n: int) -> None:
        """Working memory for n windows, or for as many as the device has room for. DeviceError if not for one."""
        if n <= self._memory.capacity:
            return
        self._memory.close()
        capacity = min(self.most_windows, 1 << (n - 1).bit_length())  # so that it seldom grows
        while True:
            try:
                self._memory = WorkingMemory(self.device, self._floats, capacity)
                return
            except DeviceError:
                if capacity == 1:
                    raise
                capacity = self.most_windows = capacity // 2

    def _compute(self, windows: Sequence[tuple[NDArray[np.float32], Result]]) -> None:
        memory, recording = self._memory, Recording(self.device)
        nbytes = self._floats["mel"] * F32_BYTES
        for i, (frames, _) in enumerate(windows):
            self.device.write(memory.buffers["mel"].view(i * nbytes, nbytes), frames)
        recording.steps.extend(self._body(len(windows)))
        for i, (_, result) in enumerate(windows):
            recording.steps.extend(self._tail(result, i))
        self.device.submit(recording, reads=[windows[-1][1].audio_states.view(0, 4)])  # waits for the end

    def read_states(self, result: Result) -> NDArray[np.float32]:
        """(1, n_audio_ctx, n_audio_state) audio states of a computed result."""
        states = self.device.read(result.audio_states).reshape(1, self.dims.n_audio_ctx, self._state)
        return np.ascontiguousarray(states[:, :, : self.dims.n_audio_state])

    def _body(self, n: int) -> list[Dispatch]:
        """From the mel of n windows to x, the last layer's output. Recorded once."""
        if n not in self._memory.bodies:
            recording = Recording(self.device)
            self._record_convolutions(recording, n)
            for layer in self._weights.layers:
                self._record_layer(recording, layer, n)
            self._memory.bodies[n] = recording.dispatches
        return self._memory.bodies[n]

    def _tail(self, result: Result, i: int) -> list[Dispatch]:
        """From x of window i to its result. Recorded once."""
        made = self._memory.tails.setdefault(result, {})
        if i not in made:
            recording = Recording(self.device)
            self._record_result(recording, result, i)
            made[i] = recording.dispatches
        return made[i]

    def _record_result(self, recording: Recording, result: Result, i: int) -> None:
        dims, n_ctx, norm = self.dims, self.dims.n_audio_ctx, self._weights.ln_post
        params = self._params(self._state // 4, dims.n_audio_state, i * n_ctx)
        bindings: list[Binding] = [self._memory.buffers["x"], norm.gain, norm.shift, result.audio_states, params]
        recording.dispatch(self._pipelines["layer_norm"], bindings, n_ctx)
        head8 = dims.n_text_state // dims.n_text_head // 8
        for start, stop, product in self._weights.cross:
            self._record_product(recording, result.audio_states, product, self._keys_values, rows=n_ctx)
            n_parts = 2 * (stop - start)
            bindings = [
                self._keys_values,
                result.cross.view(2 * start * result.part_bytes, n_parts * result.part_bytes),
                result.scales.view(start * result.scales_bytes, (stop - start) * result.scales_bytes),
                self._params(
                    n_ctx, n_parts, dims.n_text_head, head8, result.part_bytes // 16, result.scales_bytes // F32_BYTES
                ),
            ]
            recording.dispatch(self._pipelines["cross_pack"], bindings, -(-n_ctx // 64), dims.n_text_head, n_parts)

    def _record_convolutions(self, recording: Recording, n: int) -> None:
        b, floats, state = self._memory.buffers, self._floats, self._state
        self._record_product(
            recording,
            b["mel"],
            self._weights.conv1,
            b["features"],
            rows=2 * self.dims.n_audio_ctx,
            row_step=self.n_channels // 4,
            skip=state // 8,
            gelu=True,
            steps=(floats["mel"] // 4, floats["features"] // 8),
            windows=n,
        )
        self._record_product(
            recording,
            b["features"],
            self._weights.conv2,
            b["x"],
            add=self._weights.positions,
            rows=self.dims.n_audio_ctx,
            row_step=2 * state // 4,
            gelu=True,
            steps=(floats["features"] // 4, floats["x"] // 8),
            windows=n,
        )

    def _record_layer(self, recording: Recording, layer: Layer, n: int) -> None:
        b, n_ctx, n_head = self._memory.buffers, self.dims.n_audio_ctx, self.dims.n_audio_head
        x, between, rows = b["x"], b["between"], n * n_ctx
        self._record_norm(recording, x, layer.attn_norm, layer.qkv, b["qkv"], rows=rows)
        scale = math.log2(math.e) * (self.dims.n_audio_state // n_head) ** -0.5
        params = self._params(n_ctx, n_head, int(np.float32(scale).view(np.uint32)))
        queries = 32 if self._lanes is None else 4 * self._lanes
        recording.dispatch(
            self._pipelines["attention"], [b["qkv"], b["attended"], params], -(-n_ctx // queries), n_head, n
        )
        self._record_product(recording, b["attended"], layer.out, between, add=x, rows=rows)
        self._record_norm(recording, between, layer.mlp_norm, layer.up, b["hidden"], rows=rows, gelu=True)
        self._record_product(recording, b["hidden"], layer.down, x, add=between, rows=rows)

    def _grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Workgroups of a product of that many rows and groups of 8 columns."""
        if self._lanes is None:
            return -(-columns // TILE_COLUMNS), -(-rows // TILE_ROWS)
        return -(-rows // SUBGROUP_ROWS), -(-columns // self._lanes)

    def _record_product(
        self,
        recording: Recording,
        a: Binding,
        product: Product,
        out: Binding,
        *,
        rows: int,
        add: Buffer | None = None,
        row_step: int | None = None,
        skip: int = 0,
        gelu: bool = False,
        steps: tuple[int, int] = (0, 0),
        windows: int = 1,
    ) -> None:
        inner, columns = product.inner // 4, product.columns // 8
        params = self._params(rows, inner, columns, row_step or inner, skip, int(gelu), *steps)
        added = [] if add is None else [add]
        pipeline = self._pipelines["product" if add is None else "residual"]
        bindings = [a, product.weight, product.bias, *added, out, params]
        recording.dispatch(pipeline, bindings, *self._grid(rows, columns), windows)

    def _record_norm(
        self,
        recording: Recording,
        x: Buffer,
        norm: Norm,
        product: Product,
        out: Buffer,
        *,
        rows: int,
        gelu: bool = False,
    ) -> None:
        inner, columns = product.inner // 4, product.columns // 8
        params = self._params(rows, inner, columns, self.dims.n_audio_state, int(gelu))
        bindings = [x, norm.gain, norm.shift, product.weight, product.bias]
        if self._lanes is None:
            recording.dispatch(self._pipelines["norm_product"], [*bindings, out, params], *self._grid(rows, columns))
        else:  # a workgroup normalises its rows once, for all columns
            normed = self._memory.buffers["normed"]
            recording.dispatch(self._pipelines["norm_product"], [*bindings, normed, out, params], -(-rows // NORM_ROWS))

    def close(self) -> None:
        """Free weights and working memory. Idempotent."""
        self._weights.close()
        self._memory.close()
        for buffer in (self._keys_values, *self._all_params.values()):
            buffer.close()
