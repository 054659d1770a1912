"""Room for models in memory: models are loaded within a budget, and the least recently used idle one is unloaded first.

Transcriptions enter in order of arrival. One whose model is loaded enters at once, unless another waits for room: then
it waits behind that one, so that requests for a loaded model can't keep others out forever. When a model is loaded, all
that waited for it enter, so that models are not swapped for each. And a transcription never waits while a longer one
uses the same model, which keeps the model in memory anyway.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from service.errors import ModelInUse, ModelTooLarge

TICK_S = 0.05  # how late a request that waits for room notices that it was cancelled


@dataclass(eq=False)
class Occupant:
    """One model: how to unload it (False if it is in use), and the bytes it takes once loaded."""

    name: str
    n_bytes: int
    is_loaded: Callable[[], bool]
    unload: Callable[[], bool]
    users: Counter[int] = field(default_factory=Counter)  # by length of their audio, see admission.step_of
    left_at: float = -1.0  # when the last user left, by time.monotonic()
    is_in: bool = False  # its bytes are taken
    is_moving: bool = False  # being unloaded, or waiting while others are unloaded for it
    admitted: int = 0  # number of the last ticket that waited when it was loaded
    estimate: int = field(init=False)  # its bytes before any measurement

    def __post_init__(self) -> None:
        self.estimate = self.n_bytes

    @property
    def n_users(self) -> int:
        """Transcriptions that use it now."""
        return self.users.total()


@dataclass(eq=False)
class _Ticket:
    occupant: Occupant
    length: int
    number: int


@dataclass(frozen=True)
class Limits:
    """Bytes for all loaded models together, and for a model loaded alone, which may take more."""

    together: int
    alone: int


class Room:
    """The models of one kind of memory. Thread-safe."""

    def __init__(self, limits: Limits | Callable[[], Limits], *, clock: Callable[[], float] = time.monotonic) -> None:
        """`limits`: or a function that finds them for the second model; without limits the first is always loaded."""
        self._limits, self._clock = limits, clock
        self._changed = threading.Condition()
        self._occupants: list[Occupant] = []
        self._queue: list[_Ticket] = []  # the longest wait first
        self._n_tickets = 0

    @property
    def limits(self) -> Limits:
        """The limits, found when first needed."""
        if not isinstance(self._limits, Limits):
            self._limits = self._limits()
        return self._limits

    def n_bytes(self) -> int:
        """Bytes taken now."""
        return sum(occupant.n_bytes for occupant in self._occupants if occupant.is_in)

    def n_waiting(self) -> int:
        """Transcriptions waiting for room."""
        return len(self._queue)

    @contextmanager
    def using(self, occupant: Occupant, length: int = 0, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """A block in which the model may be loaded and is not unloaded. Waits until there is room.

        `check` is called at times while it waits; an exception from it ends the wait. Raises ModelTooLarge if there can
        never be room.
        """
        self._enter(occupant, length, check)
        try:
            yield
        finally:
            with self._changed:
                occupant.users[length] -= 1
                occupant.left_at = self._clock()
                if not occupant.n_users:
                    occupant.is_in = occupant.is_loaded()
                self._changed.notify_all()

    def _enter(self, occupant: Occupant, length: int, check: Callable[[], None]) -> None:
        with self._changed:
            is_first = callable(self._limits) and self._occupants in ([], [occupant])
            if not is_first and occupant.estimate > self.limits.alone:
                raise ModelTooLarge(occupant.name, occupant.estimate, self.limits.alone)
            if occupant not in self._occupants:
                self._occupants.append(occupant)
            self._n_tickets += 1
            ticket = _Ticket(occupant, length, self._n_tickets)
            self._queue.append(ticket)
            try:
                while not self._has_entered(ticket):
                    self._changed.wait(TICK_S)
                    check()
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _has_entered(self, ticket: _Ticket) -> bool:
        """Enter if possible now. Holds the lock, except while others are unloaded."""
        occupant = ticket.occupant
        if occupant.is_moving:
            return False
        ahead = self._queue[: self._queue.index(ticket)]
        is_first = all(other.occupant is occupant for other in ahead)
        if not occupant.is_in:
            if not is_first or not self._make_room(occupant):
                return False
            occupant.admitted = self._n_tickets
        elif not (is_first or ticket.number <= occupant.admitted or _outlasts(occupant, ticket.length)):
            return False
        occupant.users[ticket.length] += 1
        return True

    def _make_room(self, occupant: Occupant) -> bool:
        """Unload as many idle models as `occupant` needs; none if all of them would not be enough."""
        if not any(other.is_in for other in self._occupants):
            occupant.is_in = True
            return True
        missing = self.n_bytes() + occupant.n_bytes - self.limits.together
        idle = sorted((other for other in self._occupants if self._is_idle(other)), key=lambda other: other.left_at)
        leaving = []
        while missing > 0 and idle:
            leaving.append(idle.pop(0))
            missing -= leaving[-1].n_bytes
        if missing > 0 and any(other.is_in and other not in leaving for other in self._occupants):
            return False
        occupant.is_in = occupant.is_moving = True
        is_made = False
        try:  # each unload releases the lock, so another of them may be in use or unloaded by its turn
            is_made = all(not other.is_in or (self._is_idle(other) and self._unload(other)) for other in leaving)
        finally:
            occupant.is_moving, occupant.is_in = False, is_made
        return is_made

    @staticmethod
    def _is_idle(occupant: Occupant) -> bool:
        return occupant.is_in and not occupant.is_moving and not occupant.n_users

    def _unload(self, occupant: Occupant) -> bool:
        """Unload an idle one, without holding the lock. False if it is in use outside this room."""
        occupant.is_moving = True
        self._changed.release()
        try:
            occupant.unload()
        finally:
            self._changed.acquire()
            occupant.is_moving, occupant.is_in = False, occupant.is_loaded()
            self._changed.notify_all()
        return not occupant.is_in

    def measured(self, occupant: Occupant, n_bytes: int) -> None:
        """Count what its device reports if that is more than the estimate.

        Counts at most the limit for one model, so that a working model is never rejected.
        """
        with self._changed:
            most = self._limits.alone if isinstance(self._limits, Limits) else n_bytes
            occupant.n_bytes = max(occupant.estimate, min(n_bytes, most))
            self._changed.notify_all()

    def take_over(self, occupant: Occupant, other: "Room") -> None:
        """Move it here from the other room, while nobody uses it."""
        with other._changed:
            other._occupants.remove(occupant)
            other._changed.notify_all()
        with self._changed:
            occupant.admitted = 0  # its ticket was the other room's
            self._occupants.append(occupant)

    def leaves_in(self, occupant: Occupant, idle_s: float) -> float:
        """Seconds until unload_idle(idle_s) would unload it, if nobody uses it again."""
        return idle_s if occupant.n_users else max(0.0, occupant.left_at + idle_s - self._clock())

    def unload_idle(self, idle_s: float) -> None:
        """Unload all that nobody has used for `idle_s` seconds."""
        with self._changed:
            for occupant in [other for other in self._occupants if self._is_idle(other)]:
                if self._is_idle(occupant) and self._clock() - occupant.left_at >= idle_s:
                    self._unload(occupant)

    def unload(self, occupant: Occupant) -> bool:
        """Unload it now; False if it wasn't loaded. Raises ModelInUse."""
        with self._changed:
            n_users = occupant.n_users + sum(ticket.occupant is occupant for ticket in self._queue)
            if n_users or occupant.is_moving:
                raise ModelInUse(occupant.name, max(1, n_users))
            return self._is_idle(occupant) and self._unload(occupant)

    def forget(self, occupant: Occupant) -> None:
        """Unload it and remove it from this room. Raises ModelInUse."""
        self.unload(occupant)
        with self._changed:
            if occupant in self._occupants:
                self._occupants.remove(occupant)


def _outlasts(occupant: Occupant, length: int) -> bool:
    """Whether a longer transcription uses it."""
    return any(n and longer > length for longer, n in occupant.users.items())
