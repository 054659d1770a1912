"""Measures the guest's own share of a transcription: decoding policy, sandbox and calls, without the graphs."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bench.engines import Files, read_clip
from bench.wisp import GREEDY, Wisp
from service.audio.log_mel import log_mel_frames
from service.guest.wasi_nn import ExecutionContext, Graph
from service.transcription.run import Run
from service.transcription.staged import Unwrapped


class Clock:
    """Seconds spent in the graphs."""

    seconds = 0.0


class TimedContext:
    """An execution context whose calls are added to the clock."""

    def __init__(self, inner: ExecutionContext, clock: Clock) -> None:
        self.inner, self.clock = inner, clock

    def _timed(self, call: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            self.clock.seconds += time.perf_counter() - start

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        self._timed(self.inner.set_input, index, tensor)

    def compute(self) -> None:
        self._timed(self.inner.compute)

    def get_output(self, index: int) -> NDArray[Any]:
        found: NDArray[Any] = self._timed(self.inner.get_output, index)
        return found

    def close(self) -> None:
        self._timed(self.inner.close)


class TimedGraph:
    """A graph whose contexts are timed."""

    def __init__(self, graph: Graph, clock: Clock) -> None:
        self.graph, self.clock = graph, clock

    def init_execution_context(self, peers: Mapping[int, ExecutionContext]) -> ExecutionContext:
        return TimedContext(self.graph.init_execution_context(Unwrapped(peers)), self.clock)


def measure_guest_share(files: Files, clip: Path, rounds: int) -> float:
    """The guest's share of a greedy transcription on the CPU target, without features: the median of `rounds`."""
    wisp = Wisp(files, clip, "cpu")
    loaded, samples = wisp.transcriber.model, read_clip(clip)
    argument = wisp.transcriber.argument(GREEDY)
    shares = []
    for _ in range(rounds):
        clock = Clock()
        graphs = {name: TimedGraph(graph, clock) for name, graph in loaded.graphs.items()}
        frames = [block.tobytes() for block in log_mel_frames(lambda: [samples], loaded.dims.n_mels)]
        start = time.perf_counter()
        wisp.transcriber.guest.run(argument, frames, graphs, lambda event: None, Run().check)
        total = time.perf_counter() - start
        shares.append((total - clock.seconds) / total)
    return statistics.median(shares)
