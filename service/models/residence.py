"""A large resource that is in memory while used, and may be unloaded while idle. Knows nothing of models."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class _Held(Generic[T]):
    """A loaded resource, its number of users, and whether the last of them should unload it."""

    def __init__(self, thing: T) -> None:
        self.thing, self.n_users, self.is_discarded = thing, 0, False


class Residence(Generic[T]):
    """Loads one `T` for its first user; unloads it on request when nobody uses it. Thread-safe."""

    def __init__(self, *, load: Callable[[], T], unload: Callable[[T], None]) -> None:
        """`load` makes one, in one thread at a time; other users wait for it."""
        self._held: _Held[T] | None = None
        self._load, self._unload = load, unload
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def thing(self) -> T | None:
        """The resource that the next user would get; None while unloaded."""
        held = self._held
        return held.thing if held is not None else None

    @contextmanager
    def in_use(self) -> Iterator[T]:
        """A block in which it stays loaded. Raises what loading raises, and ValueError after close()."""
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
                is_left = held.is_discarded and not held.n_users
            if is_left:
                self._unload(held.thing)

    def unload(self) -> bool:
        """Unload it if nobody uses it; True if it was unloaded."""
        with self._lock:
            held = self._held
            if held is None or held.n_users:
                return False
            self._held = None
            self._unload(held.thing)
            return True

    def discard(self, thing: T) -> bool:
        """Give `thing` to nobody else: the next user gets another, and the last user of `thing` unloads it.

        Called by one of its users within its block. True if this call did it, False if another user already had.
        """
        with self._lock:
            held = self._held
            if held is None or held.thing is not thing:
                return False
            held.is_discarded = True
            self._held = None
            return True

    def close(self) -> None:
        """Unload it permanently, used or not. Idempotent."""
        with self._lock:
            self._is_closed = True
            if self._held is not None:
                held, self._held = self._held, None
                self._unload(held.thing)
