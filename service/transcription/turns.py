"""Fair turns: more jobs are under way than may work at once, so each works for a while and then lets others go first.

A job's turn ends at a border it comes to (for the guest: the next window of audio), never in between. Every other turn
goes to the shortest kind of job, of those to the one that has had the fewest, so that a short job soon ends however
many long ones there are; the turns between go to the one that has waited longest, so that no stream of short jobs can
keep a long one waiting for ever.
"""

import threading
from collections.abc import Callable

TICK_S = 0.05  # how late a job that waits for its turn notices that it was cancelled


class Turn:
    """One job's part in `turns`.

    `step`: how long the job is known to be; a lower one goes before a higher one, however few turns that has had.
    """

    def __init__(self, turns: "Turns", step: int = 0) -> None:
        self.turns, self.step = turns, step
        self.n_done = 0  # turns that the job has had, up to their borders
        self.is_used = False  # whether a piece of work has begun in it
        self.granted = threading.Event()  # set while it is held


class Turns:
    """Up to `count` turns at once, handed from job to job. Thread-safe."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._lock = threading.Lock()
        self._free = count
        self._n_granted = 0
        self._waiting: list[Turn] = []  # the one that came first is first

    @property
    def n_waiting(self) -> int:
        """Jobs that would work if there were more turns."""
        return len(self._waiting)

    @property
    def n_held(self) -> int:
        """Jobs that work now."""
        return self.count - self._free

    def take(self, turn: Turn, check: Callable[[], None]) -> None:
        """Wait until `turn` is granted. `check` is called now and then; what it raises ends the wait."""
        with self._lock:
            self._waiting.append(turn)
            self._grant()
        self._wait(turn, check)

    def pass_on(self, turn: Turn, check: Callable[[], None]) -> None:
        """A piece of work begins in `turn`. If another has ended in it, others that wait go first, as in take()."""
        if not turn.is_used:
            turn.is_used = True
            return
        turn.n_done += 1
        with self._lock:
            if not self._waiting:
                return
            self._waiting.append(turn)
            self._release(turn)
        self._wait(turn, check)

    def give(self, turn: Turn) -> None:
        """Let the next job have it, if it is held."""
        with self._lock:
            if turn.granted.is_set():
                self._release(turn)

    def _release(self, turn: Turn) -> None:
        turn.granted.clear()
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

    def _wait(self, turn: Turn, check: Callable[[], None]) -> None:
        try:
            while not turn.granted.wait(TICK_S):
                check()
        except BaseException:
            with self._lock:
                if turn.granted.is_set():
                    self._release(turn)
                else:
                    self._waiting.remove(turn)
            raise
