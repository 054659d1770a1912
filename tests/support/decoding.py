"""What the decoder's tests share: a random model on both targets, tokens, rules by name, an encoder result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.checkpoints.common import expected_shapes
from kernels.checkpoints.load import Checkpoint, Dimensions
from kernels.cpu.model import CpuModel
from kernels.inputs import AUDIO, ORIGINS, TOKENS
from kernels.rules import Rules
from kernels.webgpu.cross_memory import CrossMemory
from kernels.webgpu.decoder.graph import DecoderGraph
from kernels.webgpu.decoder.kernels import HARDWARE, Tiling
from kernels.webgpu.device import Device
from kernels.webgpu.wgsl import SUBGROUP, WORKGROUP

Array = NDArray[Any]
# A small vocabulary: text, end of text, <|notimestamps|>, timestamps.
EOT, NO_TIMESTAMPS, BEGIN, N_VOCAB = 400, 402, 405, 701


def random_checkpoint(dims: Dimensions, seed: int = 3) -> Checkpoint:
    """Weights drawn so that every part of the decoder matters to what it says; f16, as checkpoints are stored."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in expected_shapes(dims).items():
        scale = 0.3 if name.endswith("bias") else 1.5 * shape[-1] ** -0.5
        array = rng.standard_normal(shape) * scale
        arrays[name] = (1 + 0.3 * array if name.endswith("ln.weight") else array).astype(np.float16)
    heads = tuple((layer, head) for layer in range(dims.n_text_layer) for head in range(dims.n_text_head))
    return Checkpoint(dims, arrays, "{}", heads[1:], False)


def tokens(*rows: Sequence[int]) -> NDArray[np.int32]:
    """The decoder's input 1."""
    return np.array(rows, np.int32)


def step(context: Any, *rows: Sequence[int], origins: Sequence[int] | None = None) -> Any:
    """Append and compute."""
    context.set_input(TOKENS, tokens(*rows))
    if origins is not None:
        context.set_input(ORIGINS, np.array(origins, np.int32))
    context.compute()
    return context


def rules_tensor(
    *,
    eot: int,
    timestamp_begin: int,
    n_steps: int = 1,
    sample_begin: int = 0,
    no_timestamps: int = -1,
    limit: int = -1,
    suppress: Sequence[int] = (),
    begin_suppress: Sequence[int] = (),
) -> NDArray[np.int32]:
    """The decoder's input 3."""
    words = [n_steps, sample_begin, eot, timestamp_begin, no_timestamps, limit, len(suppress), len(begin_suppress)]
    return np.array([*words, *suppress, *begin_suppress], np.int32)


def rules(n_steps: int, **named: Any) -> NDArray[np.int32]:
    """The same, for the small vocabulary."""
    return rules_tensor(n_steps=n_steps, **{"eot": EOT, "timestamp_begin": BEGIN, **named})


def rules_of(*, n_vocab: int, **named: Any) -> Rules:
    """rules_tensor's, parsed."""
    return Rules.parse(rules_tensor(**named), n_vocab)


def pack_cross(keys: Array, values: Array, n_head: int) -> tuple[Array, Array, Array]:
    """(n_audio_ctx, n_text_state) each → integers and scales, as kernels/webgpu/cross_memory.py lays them out."""
    both = np.stack([keys, values]).reshape(2, len(keys), n_head, -1)
    scales = (np.abs(both).max(-1) / 32767).astype(np.float32)
    integers = np.round(both / scales[..., None]).astype(np.int16).reshape(2, len(keys), -1)
    by_eights = integers[0].reshape(len(keys), -1, 8).transpose(1, 0, 2)
    return np.ascontiguousarray(by_eights), integers[1], np.ascontiguousarray(scales.transpose(0, 2, 1))


def cross_memory(device: Device, checkpoint: Checkpoint, audio_states: NDArray[np.float32]) -> CrossMemory:
    """(n_audio_ctx, n_audio_state) → every layer's keys and values on the device, as the encoder leaves them."""
    layers = []
    for i in range(checkpoint.dims.n_text_layer):
        part = {
            name: np.asarray(checkpoint.arrays[f"decoder.blocks.{i}.cross_attn.{name}"], np.float32)
            for name in ("key.weight", "value.weight", "value.bias")
        }
        keys = audio_states @ part["key.weight"].T
        values = audio_states @ part["value.weight"].T + part["value.bias"]
        by_eights, integers, scales = pack_cross(keys, values, checkpoint.dims.n_text_head)
        layers.append((device.buffer(by_eights), device.buffer(integers), device.buffer(scales)))

    def free() -> None:
        for buffers in layers:
            for buffer in buffers:
                buffer.close()

    return CrossMemory(layers, free)


class Pair:
    """The same random model on the device and in NumPy, both over the same audio."""

    def __init__(self, device: Device, dims: Dimensions, tiling: Tiling | None = None) -> None:
        self.checkpoint = random_checkpoint(dims)
        self.cpu = CpuModel(self.checkpoint)
        self.encoder = self.cpu.encoder.init_execution_context({})
        mel = np.random.default_rng(0).standard_normal((1, dims.n_mels, 2 * dims.n_audio_ctx)).astype(np.float32)
        self.encoder.set_input(0, mel)
        self.encoder.compute()
        self.cross = cross_memory(device, self.checkpoint, self.encoder.get_output(0)[0])
        self.gpu = DecoderGraph(device, self.checkpoint, lambda context: self.cross, tiling)

    def contexts(self) -> tuple[Any, Any]:
        """A device context and its NumPy twin, their audio set."""
        both = (
            self.gpu.init_execution_context({1: object()}),
            self.cpu.decoder.init_execution_context({1: self.encoder}),
        )
        for context in both:
            context.set_input(AUDIO, np.array([1], np.int32))
        return both

    def close(self) -> None:
        self.gpu.close()
        self.cross.release()
        self.cpu.close()


SMALL = Dimensions(8, 37, 64, 1, 1, N_VOCAB, 45, 64, 2, 2)


def small_tiling(device: Device, kind: str) -> Tiling:
    """Several splits and tiles, or hardware's own tiling. Skips what the device has no use for."""
    if kind == "hardware":
        return HARDWARE
    if kind == WORKGROUP:
        return Tiling(WORKGROUP, 16, 64, 4, 2, 64, 3, 16)
    if Tiling.of(device).reduction != SUBGROUP:
        pytest.skip(f"{device.info.name} has no use for those kernels")
    lanes = device.subgroup_size
    return Tiling(SUBGROUP, 1, lanes, 2, 2, lanes, 1, 2)


def same(found: Array, expected: Array, tolerance: float = 2e-4) -> bool:
    """Within what rounding costs, relative to the largest element."""
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())
