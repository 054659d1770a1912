"""The decoder's inputs, made for tests: rules by name, and an encoder result from audio states."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoint import Checkpoint
from kernels.cross_memory import CrossMemory
from kernels.device import Device
from kernels.rules import Rules


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


def rules_of(*, n_vocab: int, **named: Any) -> Rules:
    """The same, parsed."""
    return Rules.parse(rules_tensor(**named), n_vocab)


def cross_memory(device: Device, checkpoint: Checkpoint, audio_states: NDArray[np.float32]) -> CrossMemory:
    """(n_audio_ctx, n_audio_state) → every layer's keys and values on the device, as the encoder leaves them."""
    layers = []
    for i in range(checkpoint.dims.n_text_layer):
        part = {
            name: np.asarray(checkpoint.arrays[f"decoder.blocks.{i}.cross_attn.{name}"], np.float32)
            for name in ("key.weight", "value.weight", "value.bias")
        }
        keys = (audio_states @ part["key.weight"].T).astype(np.float16)
        values = (audio_states @ part["value.weight"].T + part["value.bias"]).astype(np.float16)
        by_eights = np.ascontiguousarray(keys.reshape(len(keys), -1, 8).transpose(1, 0, 2))
        layers.append((device.buffer(by_eights), device.buffer(values)))

    def free() -> None:
        for buffers in layers:
            for buffer in buffers:
                buffer.close()

    return CrossMemory(layers, free)
