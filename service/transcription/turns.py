"""Fair turns: more jobs are open than may compute at the same time, so each works for a while and lets others go first.

A job's turn ends only at a border (for the guest: the next window of audio). Every other turn goes to the shortest kind
of job, and among those to the one with the fewest turns so far, so a short job ends soon however many long ones there
are. The turns in between go to the job that has waited longest, so a stream of short jobs cannot starve a long one.
"""

import threading
from collections.abc import Callable

TICK_S = 0.05  # how often a waiting job checks whether it was cancelled


class Turn:
    """One job's part in `turns`.

    `step`: how long the job is known to be; a lower step goes before a higher one, whatever their numbers of turns.
    """

    def __init__(self, turns: "Turns", step: int = 0) -> None:
        self.turns, self.step = turns, step
        self.n_done = 0  # turns so far, up to their borders
        self.is_used = False  # whether a piece of work has started in it
        self.granted = threading.Event()  # set while it is held


class Turns:
    """Up to `count` turns at the same time, passed from job to job. Thread-safe."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._lock = threading.Lock()
        self._free = count
        self._n_granted = 0
        self._waiting: list[Turn] = []  # in order of arrival

    @property
    def n_waiting(self) -> int:
        """Jobs waiting for a turn."""
        return len(self._waiting)

    @property
    def n_held(self) -> int:
        """Jobs holding a turn."""
        return self.count - self._free

    def take(self, turn: Turn, check: Callable[[], None]) -> None:
        """Wait until `turn` is granted. Calls `check` at times; an exception from it ends the wait."""
        with self._lock:
            self._waiting.append(turn)
            self._grant()
        self._wait(turn, check)

    def pass_on(self, turn: Turn, check: Callable[[], None]) -> None:
        """Start a piece of work in `turn`. If one has already ended in it, waiting jobs go first, as in take()."""
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
        """Pass it to the next job, if held."""
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
