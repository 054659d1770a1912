"""Measures the guest's own share of a transcription: decoding policy, sandbox and calls, without the graphs."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

from bench.engines import Files, read_clip
from bench.wisp import GREEDY, Wisp
from service.audio.log_mel import log_mel_frames
from service.guest.wasi_nn import ExecutionContext, Graph
from service.transcription.run import Run
from service.transcription.staged import Unwrapped

P = ParamSpec("P")
T = TypeVar("T")


class Clock:
    """Seconds spent in the graphs."""

    seconds = 0.0

    def timed(self, call: Callable[P, T]) -> Callable[P, T]:
        """The call, with its time added to the clock."""

        def wrapper(*arguments: P.args, **named: P.kwargs) -> T:
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        return wrapper


class TimedContext:
    """An execution context whose calls are added to the clock."""

    def __init__(self, inner: ExecutionContext, clock: Clock) -> None:
        self.inner = inner
        self.set_input, self.compute = clock.timed(inner.set_input), clock.timed(inner.compute)
        self.get_output, self.close = clock.timed(inner.get_output), clock.timed(inner.close)


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
