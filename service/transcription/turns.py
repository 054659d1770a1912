"""Fair turns: more jobs are under way than may work at once, so each works for a while and then lets others go first.

A job's turn ends at a border it comes to (for the guest: the next window of audio), never in between. Every other turn
goes to the shortest kind of job, of those to the one that has had the fewest, so that a short job soon ends however
many long ones there are; the turns between go to the one that has waited longest, so that no stream of short jobs can
keep a long one waiting for ever.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

TICK_S = 0.05  # how late a job that waits for its turn learns that it is not wanted any more


class StopWatch:
    """The seconds a job has worked, its waiting left out. Read from any thread, driven by one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds from some point on."""
        self._clock = clock
        self._state: tuple[float, float | None] = (0.0, None)  # seconds before, running since; replaced as one

    def seconds(self) -> float:
        """Worked so far."""
        before, since = self._state
        return before if since is None else before + self._clock() - since

    def start(self) -> None:
        """Go on counting."""
        self._state = (self.seconds(), self._clock())

    def stop(self) -> None:
        """Count no further until the next start."""
        self._state = (self.seconds(), None)


class Turns:
    """So many turns at once, handed from job to job. Thread-safe."""

    def __init__(self, count: int) -> None:
        """`count`: how many jobs hold a turn at the same time."""
        self.count = count
        self._lock = threading.Lock()
        self._free = count
        self._n_granted = 0
        self._waiting: list[Turn] = []  # the one that came first is first
        self._holders: set[int] = set()  # the threads that hold one

    @property
    def n_waiting(self) -> int:
        """Jobs that would work if there were more turns."""
        return len(self._waiting)

    @property
    def n_held(self) -> int:
        """Jobs that work now."""
        return self.count - self._free

    def held_here(self) -> bool:
        """Whether the calling thread holds a turn."""
        return threading.get_ident() in self._holders

    def take(self, turn: "Turn") -> None:
        """Wait until `turn` is granted. What `turn.check` raises ends the wait."""
        with self._lock:
            self._waiting.append(turn)
            self._grant()
        self._wait(turn)

    def give(self) -> None:
        """Let the next job have the calling thread's turn."""
        with self._lock:
            self._release()

    def pass_on(self, turn: "Turn") -> None:
        """Let others go first, if any wait, and go on when `turn` is granted again. Raises as take() does."""
        with self._lock:
            if not self._waiting:
                return
            self._waiting.append(turn)
            self._release()
            if turn.granted.is_set():
                self._holders.add(threading.get_ident())
                return
            turn.watch.stop()
        self._wait(turn)

    def _release(self) -> None:
        self._holders.discard(threading.get_ident())
        self._free += 1
        self._grant()

    def _grant(self) -> None:
        while self._free and self._waiting:
            fewest = min(self._waiting, key=lambda turn: (turn.step, turn.n_done))
            chosen = self._waiting[0] if self._n_granted % 2 else fewest
            self._waiting.remove(chosen)
            self._n_granted += 1
            self._free -= 1
            chosen.granted.set()

    def _wait(self, turn: "Turn") -> None:
        try:
            while not turn.granted.wait(TICK_S):
                turn.check()
        except BaseException:
            with self._lock:
                if turn.granted.is_set():
                    self._free += 1
                    self._grant()
                else:
                    self._waiting.remove(turn)
            raise
        with self._lock:
            self._holders.add(threading.get_ident())
        turn.watch.start()


class Turn:
    """One job's part: a block in which it holds a turn, but for the borders at which others go first.

    For one thread. Within a block of the same thread it is nothing: the outer block's turn goes on.
    """

    def __init__(self, turns: Turns, watch: StopWatch, check: Callable[[], None], *, step: int = 0) -> None:
        """`watch`: runs while the turn is held. `check`: called now and then while waiting; raises to end that.

        `step`: how long the job is known to be; a lower one goes before a higher one, however few turns that has had.
        """
        self.watch, self.check, self.step = watch, check, step
        self.n_done = 0  # turns that the job has had, up to their borders
        self.granted = threading.Event()
        self._turns = turns
        self._is_within = False
        self._is_held = self._is_used = False

    def __enter__(self) -> Self:
        self._is_within = self._turns.held_here()
        if self._is_within:
            self.watch.start()
        else:
            self._is_used = False
            self._turns.take(self)
            self._is_held = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.watch.stop()
        if self._is_held:
            self._is_held = False
            self.granted.clear()
            self._turns.give()

    def border(self) -> None:
        """Here a piece of work begins, one turn long. Before a second one others go first. Raises what `check` does."""
        if not self._is_held:
            return
        if self._is_used:
            self.n_done += 1
            self._is_held = False
            self.granted.clear()
            self._turns.pass_on(self)
            self._is_held = True
        self._is_used = True
