"""Sets of buffers that contexts take and return, so that the next request allocates nothing."""

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Buffers(Protocol):
    """A set of buffers for up to `capacity` sequences or windows."""

    capacity: int

    def close(self) -> None: ...


B = TypeVar("B", bound=Buffers)


class Pool(Generic[B]):
    """Idle sets of one kind. Thread-safe."""

    def __init__(self, make: Callable[[int], B], most: Callable[[], int]) -> None:
        """`make` a set of that capacity; `most`: the total capacity to keep."""
        self._make, self._most = make, most
        self._idle: list[B] = []  # the one returned last is last
        self._closed = False
        self._lock = threading.Lock()

    def take(self, n: int) -> B:
        """A set with room for n."""
        capacity = 1 << (n - 1).bit_length()
        with self._lock:
            for at in reversed(range(len(self._idle))):
                if self._idle[at].capacity == capacity:
                    return self._idle.pop(at)
        return self._make(capacity)

    def give(self, buffers: B) -> None:
        """Keep it for the next context; free the sets that have been idle longest if that makes too many."""
        too_many = []
        with self._lock:
            self._idle.append(buffers)
            most = 0 if self._closed else self._most()
            while sum(idle.capacity for idle in self._idle) > most:
                too_many.append(self._idle.pop(0))
        for idle in too_many:
            idle.close()

    def close(self) -> None:
        """Free the idle sets, and later those that are returned. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for buffers in idle:
            buffers.close()
