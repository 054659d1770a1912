"""What one transcription has cost: seconds by stage, audio, tokens, and how it ended. For metrics, traces, health."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.errors import ClientGone, DeadlineExceeded, RequestError

STAGES = ("decode_audio", "features", "encode", "decode_tokens")
OUTCOMES = ("done", "cancelled", "deadline", "refused", "failed")
MAX_SPANS = 1000  # a window of audio has a few; the rest of a very long recording is in the sums only

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """One stage without interruption by another: Unix times in nanoseconds, waiting for turns within it included."""

    stage: str
    start_ns: int
    end_ns: int


@dataclass
class Work:
    """A transcription's stages, driven by its thread: one at a time, each until the next is entered.

    `clock` gives the seconds that count: those it has worked, its waiting for turns left out.
    """

    clock: Callable[[], float] = time.monotonic
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    spans: list[Span] = field(default_factory=list)
    submitted_ns: int = field(default_factory=time.time_ns)
    ended_ns: int = 0
    audio_s: float = 0.0
    n_tokens: int = 0
    outcome: str = "failed"
    _stage: str = ""
    _since: float = 0.0
    _since_ns: int = 0

    @property
    def worked_s(self) -> float:
        """In all stages."""
        return sum(self.seconds.values())

    def enter(self, stage: str) -> None:
        """The stage there was has ended, this one begins; the empty name is none."""
        if stage == self._stage:
            return
        now, now_ns = self.clock(), time.time_ns()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
            if len(self.spans) < MAX_SPANS:
                self.spans.append(Span(self._stage, self._since_ns, now_ns))
        self._stage, self._since, self._since_ns = stage, now, now_ns

    def during(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items; making each of them belongs to `stage`, what is done with it to the stage there was."""
        iterator, nothing = iter(items), object()
        while True:
            before = self._stage
            self.enter(stage)
            item: Any = next(iterator, nothing)
            self.enter(before)
            if item is nothing:
                return
            yield item

    def end(self, future: "Future[Any]") -> None:
        """The transcription is over, with this result, exception or withdrawal."""
        self.enter("")
        self.ended_ns = time.time_ns()
        self.outcome = _outcome(future)


def _outcome(future: "Future[Any]") -> str:
    error = ClientGone() if future.cancelled() else future.exception()
    match error:
        case None:
            return "done"
        case ClientGone():
            return "cancelled"
        case DeadlineExceeded():
            return "deadline"
        case RequestError():
            return "refused"
        case _:
            return "failed"
