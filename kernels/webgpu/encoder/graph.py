"""Whisper's encoder as a graph on a WebGPU device: log-mel in; audio states and cross-attention memory stay there.

Windows that wait for the device at the same moment, whichever requests they are of, are computed together.
"""

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.load import Checkpoint
from kernels.inputs import checked_mel
from kernels.webgpu.cross_memory import CrossMemory
from kernels.webgpu.device import Device, DeviceError
from kernels.webgpu.encoder.memory import Result
from kernels.webgpu.encoder.program import EncoderProgram
from kernels.webgpu.wgsl import Reduction

IDLE_RESULTS = 4  # or as many as go together: kept for the next windows, so that a request allocates nothing
Frames = NDArray[np.float32]


@dataclass(eq=False)
class Window:
    """One that waits to be computed: its frames as the program takes them, and who is told of its result."""

    frames: Frames
    told: Future[Result] = field(default_factory=Future)


class EncoderGraph:
    """A model's encoder: weights and compiled kernels, shared by its contexts."""

    def __init__(
        self, device: Device, checkpoint: Checkpoint, reduction: Reduction | None = None, windows: int | None = None
    ) -> None:
        """`reduction` and `windows`, how many are computed together at most, are chosen by the adapter if None."""
        self.device, self.dims = device, checkpoint.dims
        self.program = device.run(lambda: EncoderProgram(device, checkpoint, reduction, windows))
        self._waiting: deque[Window] = deque()
        self._idle: list[Result] = []
        self._lock = threading.Lock()
        self._closed = False

    def init_execution_context(self, peers: Mapping[int, Any]) -> "EncoderContext":
        """A context of its own for one thread at a time; it needs no peers."""
        return EncoderContext(self)

    def cross_of(self, context: Any) -> CrossMemory:
        """What a decoder of this model attends to. ValueError unless `context` is this encoder's and has computed."""
        if not isinstance(context, EncoderContext) or context.graph is not self:
            raise ValueError("audio is not an encoder context of this model")
        if context.cross is None:
            raise ValueError("the encoder context has not computed yet")
        return context.cross

    def encode(self, mel: Frames) -> Result:
        """(n_mels, 2 · n_audio_ctx) → its result, in memory given back if there is any. Not on the device's thread."""
        window = Window(self.program.frames(mel))
        self._waiting.append(window)
        try:
            self.device.enqueue(self._compute_waiting)
        except DeviceError:
            with suppress(ValueError):  # where a job that was still running took it
                self._waiting.remove(window)
            raise
        return window.told.result()

    def _compute_waiting(self) -> None:
        """As many windows as go together, of those that wait: perhaps none, where earlier jobs have taken them."""
        taken: list[tuple[Window, Result]] = []
        while len(taken) < self.program.most_windows:
            try:
                window = self._waiting.popleft()
            except IndexError:
                break
            try:
                taken.append((window, self._take_result()))
            except Exception as error:  # whatever it is, the one it belongs to must be told
                window.told.set_exception(error)
        if not taken:
            return
        try:
            self.program.compute([(window.frames, result) for window, result in taken])
        except Exception as error:
            for window, result in taken:
                self.give_result(result)
                window.told.set_exception(error)
        else:
            for window, result in taken:
                window.told.set_result(result)

    def _take_result(self) -> Result:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self.program.result()

    def give_result(self, result: Result) -> None:
        """Keep it for the next window, or free it."""
        with self._lock:
            if not self._closed and len(self._idle) < max(IDLE_RESULTS, self.program.most_windows):
                self._idle.append(result)
                return
        result.close()

    def close(self) -> None:
        """Free the weights and the idle results. Contexts are closed before. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for result in idle:
            result.close()
        self.program.close()


class EncoderContext:
    """in 0 `mel` f32 [1, n_mels, 2 · n_audio_ctx] → out 0 `audio_states` f32 [1, n_audio_ctx, n_audio_state], if read.

    compute also leaves `cross`, every decoder layer's keys and values, on the device; a decoder that holds it keeps it.
    """

    def __init__(self, graph: EncoderGraph) -> None:
        self.graph = graph
        self.cross: CrossMemory | None = None
        self._mel: NDArray[np.float32] | None = None
        self._result: Result | None = None
        self._closed = False

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        """The log-mel window. Raises ValueError for another index, type, shape, NaN or ∞, or after close()."""
        if self._closed:
            raise ValueError("this encoder context is closed")
        self._mel = checked_mel(self.graph.dims, index, tensor)

    def compute(self) -> None:
        """Encode the window set. Raises ValueError when none is, or after close()."""
        if self._closed:
            raise ValueError("this encoder context is closed")
        if self._mel is None:
            raise ValueError("mel is not set")
        mel, graph = self._mel[0], self.graph
        self._drop()
        result = self._result = graph.encode(mel)
        self.cross = CrossMemory(result.layers, lambda: graph.give_result(result))

    def get_output(self, index: int) -> NDArray[np.float32]:
        """The audio states, copied from the device now. ValueError before the first compute or for another index."""
        if index != 0:
            raise ValueError(f"the encoder has no output {index}")
        result, graph = self._result, self.graph
        if result is None:
            raise ValueError("nothing is computed yet")
        return graph.device.run(lambda: graph.program.read_states(result))

    def _drop(self) -> None:
        """Hold the last result no longer; its memory is free once no decoder holds it either."""
        cross, self.cross, self._result = self.cross, None, None
        if cross is not None:
            cross.release()

    def close(self) -> None:
        """Let go of the window and its result; decoders that attend to it keep theirs. Idempotent."""
        self._closed = True
        self._mel = None
        self._drop()
