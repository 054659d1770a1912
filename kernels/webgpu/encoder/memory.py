"""The encoder's memory on a device: a window's result, and the working memory that windows pass through."""

import math
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from kernels.checkpoints.load import Dimensions
from kernels.webgpu.device import Device
from kernels.webgpu.encoder.weights import HEAD_COLUMNS, padded
from kernels.webgpu.recording import Dispatch, View

F32_BYTES = 4


def floats_a_window(dims: Dimensions, *, is_normed_apart: bool) -> dict[str, int]:
    """Floats per window in each working buffer. `is_normed_apart`: whether a layer norm's output has its own buffer."""
    n_ctx, state, wide = dims.n_audio_ctx, padded(dims.n_audio_state), dims.n_audio_head * HEAD_COLUMNS
    n_frames = 2 * n_ctx + 2  # a zero frame on either side of the window pads the convolutions
    normed = {"normed": n_ctx * state} if is_normed_apart else {}
    return {
        **normed,
        "mel": n_frames * padded(dims.n_mels),
        "features": n_frames * state,
        "x": n_ctx * state,  # the residual stream
        "between": n_ctx * state,  # the same in the middle of a layer
        "qkv": n_ctx * 3 * wide,
        "attended": n_ctx * wide,
        "hidden": n_ctx * padded(4 * dims.n_audio_state),
    }


def windows_that_fit(floats: Mapping[str, int], max_binding: int, nbytes: int) -> int:
    """How many windows fit into `nbytes` of working memory together, each buffer in one binding; at least one."""
    largest, all_of_one = max(floats.values()) * F32_BYTES, sum(floats.values()) * F32_BYTES
    return max(1, min(max_binding // largest, nbytes // all_of_one))


class Result:
    """One window's result on the device. `audio_states` f32 (n_audio_ctx, padded n_audio_state); `cross` and `scales`
    hold `layers`, each decoder layer's (keys, values, scales) as kernels/webgpu/cross_memory.py lays them out. From a
    layer's keys to its values it is `part_bytes`, from its scales to the next one's `scales_bytes`."""

    def __init__(self, device: Device, dims: Dimensions) -> None:
        self.capacity = 1  # window
        step = math.lcm(16, device.offset_alignment)
        n_bytes = dims.n_audio_ctx * dims.n_text_state * 2
        n_scales = 2 * dims.n_text_head * dims.n_audio_ctx * F32_BYTES
        self.part_bytes, self.scales_bytes = -(-n_bytes // step) * step, -(-n_scales // step) * step
        self.audio_states = device.buffer(dims.n_audio_ctx * padded(dims.n_audio_state) * F32_BYTES)
        self.cross = device.buffer(2 * dims.n_text_layer * self.part_bytes)
        self.scales = device.buffer(dims.n_text_layer * self.scales_bytes)
        self.layers: Sequence[tuple[View, View, View]] = [
            (
                self.cross.view(2 * i * self.part_bytes, n_bytes),
                self.cross.view((2 * i + 1) * self.part_bytes, n_bytes),
                self.scales.view(i * self.scales_bytes, n_scales),
            )
            for i in range(dims.n_text_layer)
        ]

    def close(self) -> None:
        """Free its memory. Idempotent."""
        for buffer in (self.audio_states, self.cross, self.scales):
            buffer.close()


class WorkingMemory:
    """Buffers by name that up to `capacity` windows go through together, window after window in each, and the launches
    recorded over them: `bodies` by the number of windows, `tails` by the result written and its window."""

    def __init__(self, device: Device, floats: Mapping[str, int], capacity: int) -> None:
        """`floats`: per window in each buffer. Raises DeviceError if the device has too little memory."""
        self.capacity = capacity
        self.buffers = {name: device.buffer(capacity * n * F32_BYTES) for name, n in floats.items()}
        self.bodies: dict[int, list[Dispatch]] = {}
        self.tails: WeakKeyDictionary[Result, dict[int, list[Dispatch]]] = WeakKeyDictionary()

    def close(self) -> None:
        """Free it; its capacity is then 0. Idempotent."""
        self.capacity = 0
        self.bodies.clear()
        self.tails.clear()
        for buffer in self.buffers.values():
            buffer.close()
