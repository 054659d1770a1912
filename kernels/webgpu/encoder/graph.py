"""Whisper's encoder as a graph on a WebGPU device: log-mel in; audio states and cross-attention memory stay there.

Windows that wait for the device at the same time, from any requests, are computed together.
"""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import inputs
from kernels.checkpoints.load import Checkpoint
from kernels.webgpu.cross_memory import CrossMemory
from kernels.webgpu.device import Device, DeviceError
from kernels.webgpu.encoder.memory import Result
from kernels.webgpu.encoder.program import EncoderProgram
from kernels.webgpu.pool import Pool
from kernels.webgpu.wgsl import Reduction

IDLE_RESULTS = 4  # or as many as are computed together: kept for later windows, so that a request allocates nothing
Frames = NDArray[np.float32]


@dataclass(eq=False)
class Window:
    """A waiting window: its frames as the program takes them, and the future of its result."""

    frames: Frames
    future: Future[Result] = field(default_factory=Future)


class EncoderGraph:
    """A model's encoder: weights and compiled kernels, shared by its contexts."""

    def __init__(
        self, device: Device, checkpoint: Checkpoint, reduction: Reduction | None = None, windows: int | None = None
    ) -> None:
        """`reduction` and `windows`, the most computed together, are chosen by adapter if None."""
        self.device, self.dims = device, checkpoint.dims
        self.program = device.run(lambda: EncoderProgram(device, checkpoint, reduction, windows))
        self._waiting: deque[Window] = deque()
        self.pool = Pool(lambda _: self.program.result(), lambda: max(IDLE_RESULTS, self.program.most_windows))

    def init_execution_context(self, peers: Mapping[int, Any]) -> "EncoderContext":
        """A new context, for one thread at a time; it needs no peers."""
        return EncoderContext(self)

    def cross_of(self, context: Any) -> CrossMemory:
        """What a decoder attends to. ValueError unless `context` is this encoder's and has computed."""
        if not isinstance(context, EncoderContext) or context.graph is not self:
            raise ValueError("audio is not an encoder context of this model")
        if context.cross is None:
            raise ValueError("the encoder context has not computed yet")
        return context.cross

    def encode(self, mel: Frames) -> Result:
        """(n_mels, 2 · n_audio_ctx) → its result, in reused memory if there is any. Not on the device's thread."""
        window = Window(self.program.frames(mel))
        self._waiting.append(window)
        try:
            self.device.enqueue(self._compute_waiting)
        except DeviceError:
            with suppress(ValueError):  # a job that was still running took it
                self._waiting.remove(window)
            raise
        return window.future.result()

    def _compute_waiting(self) -> None:
        """Compute as many waiting windows as fit together; perhaps none, if earlier jobs took them."""
        taken: list[tuple[Window, Result]] = []
        while len(taken) < self.program.most_windows:
            try:
                window = self._waiting.popleft()
            except IndexError:
                break
            try:
                taken.append((window, self.pool.take(1)))
            except Exception as error:  # of any kind: the window's caller must get it
                window.future.set_exception(error)
        if not taken:
            return
        try:
            self.program.compute([(window.frames, result) for window, result in taken])
        except Exception as error:
            for window, result in taken:
                self.pool.give(result)
                window.future.set_exception(error)
        else:
            for window, result in taken:
                window.future.set_result(result)

    def close(self) -> None:
        """Free the weights and the idle results. Close contexts first. Idempotent."""
        self.pool.close()
        self.program.close()


class EncoderContext(inputs.EncoderContext):
    """One window. compute also leaves `cross`, every decoder layer's keys and values, on the device; a decoder that
    holds it keeps it. The audio states are copied from the device when they are read."""

    def __init__(self, graph: EncoderGraph) -> None:
        super().__init__(graph.dims)
        self.graph = graph
        self.cross: CrossMemory | None = None
        self._result: Result | None = None

    def _encode(self, mel: Frames) -> None:
        graph = self.graph
        self._release()
        result = self._result = graph.encode(mel)
        self.cross = CrossMemory(result.layers, lambda: graph.pool.give(result))

    def _states(self) -> Frames | None:
        result, graph = self._result, self.graph
        return None if result is None else graph.device.run(lambda: graph.program.read_states(result))

    def _release(self) -> None:
        cross, self.cross, self._result = self.cross, None, None
        if cross is not None:
            cross.release()  # its memory is freed once no decoder holds it either
