"""Whisper's decoder as WGSL dispatches: token ids in, chosen tokens, log-probabilities or logits out.

A model makes it with `DecoderGraph(device, checkpoint, cross_of)`. For an encoder context of this model that has
computed, `cross_of(context)` returns its `CrossMemory` (layout in webgpu/cross_memory.py); for any other it raises
ValueError. The decoder holds it for as long as it attends to it.

A token takes 8 launches per layer, one for the logits and one to choose: 34 for Whisper tiny. Rows, positions and the
rules' state are in a device buffer (state.py), so every step is the same recording, and one submit contains several.
Contexts that choose tokens at the same time run as a batch (batch.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

from kernels.checkpoints.load import Checkpoint
from kernels.webgpu.cross_memory import CrossMemory
from kernels.webgpu.decoder.batch import Batch
from kernels.webgpu.decoder.context import DecoderContext
from kernels.webgpu.decoder.kernels import Tiling
from kernels.webgpu.decoder.program import DecoderProgram
from kernels.webgpu.device import Device
from kernels.webgpu.pool import Pool

IDLE_SEQUENCES = 16  # total capacity of the idle buffers: the largest set's


class DecoderGraph:
    """A model's decoder on a device: weights, compiled kernels, and buffers kept for the next context."""

    def __init__(
        self,
        device: Device,
        checkpoint: Checkpoint,
        cross_of: Callable[[Any], CrossMemory],
        tiling: Tiling | None = None,
    ) -> None:
        self._alignment_heads, self._cross_of = checkpoint.alignment_heads, cross_of
        self.program = device.run(lambda: DecoderProgram(device, checkpoint, tiling))
        self._pool = Pool(self.program.buffers, lambda: IDLE_SEQUENCES)
        self._batch = Batch(self.program)

    def init_execution_context(self, peers: Mapping[int, Any]) -> DecoderContext:
        """A decoder with an empty cache. `peers`: the contexts that its `audio` input may name."""
        return DecoderContext(self.program, self._pool, self._batch, self._cross_of, self._alignment_heads, peers)

    def close(self) -> None:
        """Free the weights and idle buffers, after all contexts are closed. Idempotent."""
        self._pool.close()
        self._batch.close()
        self.program.close()
