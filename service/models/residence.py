"""Something large that is in memory while it is used, and may leave it while it is not. Knows no model."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class _Held(Generic[T]):
    """One that is in memory, how many use it, and whether the last of them is to unload it."""

    def __init__(self, thing: T) -> None:
        self.thing, self.n_users, self.is_discarded = thing, 0, False


class Residence(Generic[T]):
    """Loads one `T` for its first user, unloads it when told to and nobody uses it. Thread-safe."""

    def __init__(self, *, load: Callable[[], T], unload: Callable[[T], None]) -> None:
        """`load` makes one; one thread at a time does, and those who want it meanwhile wait for that."""
        self._held: _Held[T] | None = None
        self._load, self._unload = load, unload
        self._lock = threading.Lock()
        self._left_at = time.monotonic()  # when the last user went
        self._is_closed = False

    @property
    def thing(self) -> T | None:
        """What is in memory for the next user; None while nothing is."""
        held = self._held
        return held.thing if held is not None else None

    @contextmanager
    def in_use(self) -> Iterator[T]:
        """A block in which it stays. Raises what loading it raises, ValueError after close()."""
        with self._lock:
            if self._is_closed:
                raise ValueError("this is closed")
            if self._held is None:
                self._held = _Held(self._load())
            held = self._held
            held.n_users += 1
        try:
            yield held.thing
        finally:
            with self._lock:
                held.n_users -= 1
                self._left_at = time.monotonic()
                is_left = held.is_discarded and not held.n_users
            if is_left:
                self._unload(held.thing)

    def unload(self, idle_s: float = 0.0) -> bool:
        """Unload it if nobody has used it for so many seconds; True if that was done."""
        with self._lock:
            held = self._held
            if held is None or held.n_users or time.monotonic() - self._left_at < idle_s:
                return False
            self._held = None
            self._unload(held.thing)
            return True

    def discard(self, thing: T) -> bool:
        """Let nobody else have `thing`: the next user gets another. It is unloaded when the last user of it has gone.

        For one of those users, within its block. True if that was done, False if another has done it.
        """
        with self._lock:
            held = self._held
            if held is None or held.thing is not thing:
                return False
            held.is_discarded = True
            self._held = None
            return True

    def close(self) -> None:
        """Unload it for good, used or not. Idempotent."""
        with self._lock:
            self._is_closed = True
            if self._held is not None:
                held, self._held = self._held, None
                self._unload(held.thing)
