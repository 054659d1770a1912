"""One transcription in progress: its clock, deadline, cancellation, turn and measurements."""

import contextvars
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from service.errors import ClientGone, DeadlineExceeded, RequestError
from service.transcription.turns import Turn, Turns
from service.transcription.types import Transcription

STAGES = ("decode_audio", "features", "encode", "decode_tokens")
OUTCOMES = ("done", "cancelled", "deadline", "refused", "failed")
MAX_SPANS = 1000  # a window has a few; for a very long recording the rest appears only in the sums

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """One stage without interruption by another: Unix times in nanoseconds, including waits for turns."""

    stage: str
    start_ns: int
    end_ns: int


class Run:
    """One thread drives it; any thread may call `cancel`, `check` and `elapsed`.

    `future` ends with the transcription or its error. It cannot be cancelled itself: `cancel()` ends it with
    ClientGone.
    """

    def __init__(self, model: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds from any starting point."""
        self.model = model  # its name
        self.future: Future[Transcription] = Future()
        self.future.set_running_or_notify_cancel()
        self.future.add_done_callback(lambda _: self._end())
        self.context = contextvars.copy_context()  # the request's
        self.is_cancelled = False
        self.deadline_s = math.inf
        self._clock = clock
        self._time: tuple[float, float | None] = (0.0, clock())  # seconds before, running since; replaced as one
        self._turn: Turn | None = None
        # Measurements:
        self.submitted_ns, self.ended_ns = time.time_ns(), 0
        self.audio_s, self.n_tokens = 0.0, 0
        self.seconds: dict[str, float] = {}  # by stage
        self.spans: list[Span] = []
        self._stage, self._since, self._since_ns = "", 0.0, 0
        # Its place, assigned by Admission:
        self.call: Callable[[], Any] | None = None  # None once it has ended, to release everything
        self.client = ""
        self.rank = 0.0  # of waiting runs, the lowest starts first
        self.length = 0  # number of length steps it is known to exceed
        self.is_aside = False  # it waits for its model, and leaves its place to others meanwhile
        self.on_cancel: Callable[[], None] = lambda: None

    def begin(self, deadline_s: float) -> None:
        """Start the clock at 0; the deadline holds until `allow` extends it."""
        self._time, self.deadline_s = (0.0, self._clock()), deadline_s

    def elapsed(self) -> float:
        """Seconds since the start, without waits for turns."""
        before, since = self._time
        return before if since is None else before + self._clock() - since

    def allow(self, deadline_s: float) -> None:
        """Extend the deadline to this, if it is later. Raises as check() does."""
        self.deadline_s = max(self.deadline_s, deadline_s)
        self.check()

    def check(self) -> None:
        """Raise ClientGone once cancelled, DeadlineExceeded once the deadline has passed."""
        if self.is_cancelled:
            raise ClientGone
        if self.elapsed() > self.deadline_s:
            raise DeadlineExceeded(self.deadline_s)

    def cancel(self) -> None:
        """Cancel it, waiting or computing. Idempotent."""
        self.is_cancelled = True
        self.on_cancel()

    @property
    def is_working(self) -> bool:
        """Whether it is in a block of `working`."""
        return self._turn is not None

    @contextmanager
    def working(self, turns: Turns, step: int = 0) -> Iterator[None]:
        """A block in which it holds a turn, except at borders. A nested block continues the outer one's turn.

        `step`: the run's known length, see Turn. Raises as check() does.
        """
        if self._turn is not None:
            yield
            return
        turn = Turn(turns, step)
        with self.waiting():
            turns.take(turn, self.check)
        self._turn = turn
        try:
            yield
        finally:
            self._turn = None
            turns.give(turn)

    def border(self) -> None:
        """Start a piece of work, one turn long; from the second one on, others go first. Raises as check() does."""
        if self._turn is not None:
            with self.waiting():
                self._turn.turns.pass_on(self._turn, self.check)
        self.check()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that does not count against the deadline."""
        self._time = (self.elapsed(), None)
        try:
            yield
        finally:
            self._time = (self.elapsed(), self._clock())

    def enter(self, stage: str) -> None:
        """End the current stage and start this one; an empty name means none."""
        if stage == self._stage:
            return
        now, now_ns = self.elapsed(), time.time_ns()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
            if len(self.spans) < MAX_SPANS:
                self.spans.append(Span(self._stage, self._since_ns, now_ns))
        self._stage, self._since, self._since_ns = stage, now, now_ns

    def during(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; making each one counts as `stage`, using it as the previous stage."""
        iterator, nothing = iter(items), object()
        while True:
            before = self._stage
            self.enter(stage)
            item: Any = next(iterator, nothing)
            self.enter(before)
            if item is nothing:
                return
            yield item

    @property
    def worked_s(self) -> float:
        """Seconds in all stages."""
        return sum(self.seconds.values())

    @property
    def outcome(self) -> str:
        """One of OUTCOMES, once it has ended."""
        match self.future.exception(0):
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

    def _end(self) -> None:
        self.enter("")
        self.ended_ns = time.time_ns()
