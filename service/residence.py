"""Something large that is in memory while it is used, and may leave it while it is not. Knows no model."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Residence(Generic[T]):
    """Holds one `T`, unloads it when told to and nobody uses it, loads it again for the next who does. Thread-safe."""

    def __init__(self, thing: T, *, load: Callable[[], T], unload: Callable[[T], None]) -> None:
        """`load` makes another one; one thread at a time does, and those who want it meanwhile wait for that."""
        self._thing: T | None = thing
        self._load, self._unload = load, unload
        self._lock = threading.Lock()
        self._n_users = 0
        self._left_at = time.monotonic()  # when the last user went
        self._is_closed = False

    @property
    def thing(self) -> T | None:
        """What is in memory; None while nothing is."""
        return self._thing

    @contextmanager
    def in_use(self) -> Iterator[T]:
        """A block in which it stays. Raises what loading it raises, ValueError after close()."""
        with self._lock:
            if self._is_closed:
                raise ValueError("this is closed")
            if self._thing is None:
                self._thing = self._load()
            thing = self._thing
            self._n_users += 1
        try:
            yield thing
        finally:
            with self._lock:
                self._n_users -= 1
                self._left_at = time.monotonic()

    def unload(self, idle_s: float = 0.0) -> bool:
        """Unload it if nobody has used it for so many seconds; True if that was done."""
        with self._lock:
            if self._thing is None or self._n_users or time.monotonic() - self._left_at < idle_s:
                return False
            thing, self._thing = self._thing, None
            self._unload(thing)
            return True

    def close(self) -> None:
        """Unload it for good, used or not. Idempotent."""
        with self._lock:
            self._is_closed = True
            if self._thing is not None:
                thing, self._thing = self._thing, None
                self._unload(thing)
