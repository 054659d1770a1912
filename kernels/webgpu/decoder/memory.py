"""The decoder's memory on the device: a model's weights, a pass's working buffers, the cache of one context."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.load import Checkpoint, Dimensions
from kernels.webgpu.decoder.state import MAX_ROWS, STATE
from kernels.webgpu.device import Device
from kernels.webgpu.recording import Buffer, Pipeline, View


class DecoderWeights:
    """The decoder's tensors on the device: matrices f16, the rest f32. close() is idempotent."""

    def __init__(self, device: Device, checkpoint: Checkpoint) -> None:
        arrays, dims = checkpoint.arrays, checkpoint.dims
        self._buffers: list[Buffer] = []

        def put(names: Sequence[str], dtype: type[np.generic]) -> Buffer:
            stacked = np.concatenate([_array(arrays, f"decoder.{name}", dims).astype(dtype) for name in names])
            self._buffers.append(device.buffer(stacked))
            return self._buffers[-1]

        def linear(*names: str) -> tuple[Buffer, Buffer]:
            return put([f"{n}.weight" for n in names], np.float16), put([f"{n}.bias" for n in names], np.float32)

        def norm(name: str) -> Buffer:
            return put([f"{name}.weight", f"{name}.bias"], np.float32)

        self.table = put(["token_embedding.weight"], np.float16)
        self.positions = put(["positional_embedding"], np.float32)
        self.norm = norm("ln")
        self.layers: list[dict[str, tuple[Buffer, ...]]] = [
            {
                "attn_ln": (norm(f"blocks.{i}.attn_ln"),),
                "qkv": linear(*(f"blocks.{i}.attn.{n}" for n in ("query", "key", "value"))),
                "out": linear(f"blocks.{i}.attn.out"),
                "cross_ln": (norm(f"blocks.{i}.cross_attn_ln"),),
                "cross_query": linear(f"blocks.{i}.cross_attn.query"),
                "cross_out": linear(f"blocks.{i}.cross_attn.out"),
                "mlp_ln": (norm(f"blocks.{i}.mlp_ln"),),
                "fc1": linear(f"blocks.{i}.mlp.0"),
                "fc2": linear(f"blocks.{i}.mlp.2"),
            }
            for i in range(dims.n_text_layer)
        ]

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.close()


def _array(arrays: Mapping[str, NDArray[Any]], name: str, dims: Dimensions) -> NDArray[Any]:
    """A tensor, rows first. Whisper's key projections have no bias: theirs is zero."""
    if name.endswith(".key.bias"):
        return np.zeros(dims.n_text_state, np.float32)
    return arrays[name]


class Activations:
    """A pass's working buffers: up to MAX_ROWS rows, of up to `capacity` sequences. close() is idempotent."""

    def __init__(self, device: Device, dims: Dimensions, splits: int, partial_bytes: int, capacity: int) -> None:
        n, f32 = dims.n_text_state, 4
        self.capacity = capacity
        self.row_bytes = MAX_ROWS * n * f32
        self.state = device.buffer(STATE.itemsize)
        self.mask = device.buffer(2 * -(-dims.n_vocab // 32) * 4)
        self.x = device.buffer(self.row_bytes)
        self.query = device.buffer(self.row_bytes)
        self.cross_query = device.buffer(dims.n_text_layer * self.row_bytes)  # a layer's queries are kept for output 3
        self.attended = device.buffer(self.row_bytes)
        self.parts = device.buffer(splits * self.row_bytes)
        self.stats = device.buffer(MAX_ROWS * dims.n_text_head * splits * 8)
        self.hidden = device.buffer(4 * self.row_bytes)
        self.logits = device.buffer(capacity * dims.n_vocab * f32)
        self.partials = device.buffer(capacity * partial_bytes)
        self.chosen = device.buffer((dims.n_text_ctx + 1) * capacity * 8)
        self._device = device
        self._groups: dict[tuple[int, tuple[View, ...]], Any] = {}

    def bind_group(self, pipeline: Pipeline, views: Sequence[View]) -> Any:
        """The device's, made once for these views; it lives as long as the buffers."""
        key = (id(pipeline.layout), tuple(views))
        if key not in self._groups:
            self._groups[key] = self._device.bind_group(pipeline, views)
        return self._groups[key]

    def close(self) -> None:
        self._groups.clear()
        lists = [value if isinstance(value, list) else [value] for value in vars(self).values()]
        for buffer in (item for items in lists for item in items):
            if isinstance(buffer, Buffer):
                buffer.close()


class DecoderBuffers(Activations):
    """One context's buffers on the device for up to `capacity` sequences: their cache and a pass's activations."""

    def __init__(self, device: Device, dims: Dimensions, splits: int, partial_bytes: int, capacity: int) -> None:
        super().__init__(device, dims, splits, partial_bytes, capacity)
        cache = capacity * dims.n_text_ctx * dims.n_text_state * 4
        self.keys = [device.buffer(cache) for _ in range(dims.n_text_layer)]
        self.values = [device.buffer(cache) for _ in range(dims.n_text_layer)]
        self.slots = device.buffer(capacity * dims.n_text_ctx * 4)  # (capacity, n_text_ctx) u32: the slot of a position
