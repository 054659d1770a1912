"""Ends a guest's run early: its caller cancels it, or the host has found a reason."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TICK_S = 0.02  # how late the end reaches a guest that calls nothing


class GuestError(Exception):
    """A failed run: what happened, where in the guest, and its stderr. For the log."""


class Lifetime:
    """Whether a run may continue, and why it was stopped."""

    def __init__(self, interrupt: Callable[[], None], check: Callable[[], None]) -> None:
        """`interrupt`: makes the guest's code exit at its next branch or call. `check`: raises to stop the run."""
        self.stopped_by: Exception | None = None
        self._interrupt, self._check = interrupt, check

    def stop(self, reason: Exception) -> None:
        """End the run. The first reason counts."""
        if self.stopped_by is None:
            self.stopped_by = reason
        self._interrupt()

    def may_go_on(self) -> bool:
        """Whether the guest may continue; stops it if the caller's check says so."""
        if self.stopped_by is None:
            try:
                self._check()
            except Exception as error:
                self.stop(error)
        return self.stopped_by is None


class Watchdog:
    """Stops runs whose guests call nothing. Its thread sleeps while nothing runs."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._watched: set[Lifetime] = set()
        self._thread: threading.Thread | None = None
        self._asleep = False
        self._closed = False

    @contextmanager
    def watching(self, lifetime: Lifetime) -> Iterator[None]:
        """Watch a run during the block, and never touch it afterwards."""
        with self._wake:
            self._watched.add(lifetime)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="guest-watchdog", daemon=True)
                self._thread.start()
            elif self._asleep:
                self._wake.notify()
        try:
            yield
        finally:
            with self._wake:
                self._watched.discard(lifetime)

    def close(self) -> None:
        """End the thread after the last run. Idempotent."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def _watch(self) -> None:
        with self._wake:
            while self._watched or not self._closed:
                self._asleep = not self._watched
                self._wake.wait(TICK_S if self._watched else None)
                for lifetime in self._watched:
                    lifetime.may_go_on()
            self._thread = None  # a run that started while the guest was being closed starts another
