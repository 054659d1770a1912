"""How many jobs there may be: so many are open, each in a thread, so many more wait, one more is refused."""

import contextvars
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

from service.errors import ClientGone, QueueFull
from service.memory import Trimmer

FIRST_GUESS_S = 1.0  # how long a job works, before any has finished: only Retry-After needs it
LONGEST_RETRY_S = 60

T = TypeVar("T")


class _Call(Generic[T]):
    """A call to be made once. A thread pool keeps even a withdrawn one until a thread is free: forget() empties it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call

    def __call__(self) -> T:
        call = self._call
        if call is None:
            raise ClientGone
        return call()

    def forget(self) -> None:
        """Let go of what the call needs."""
        self._call = None


class Admission:
    """Threads for the open jobs, and the places of all. Thread-safe; owns its threads."""

    def __init__(self, *, n_open: int, queue_length: int, n_at_once: int) -> None:
        """`n_open` jobs are begun, `queue_length` more wait; `n_at_once` of the open ones work at the same time."""
        self.n_places, self._n_at_once = n_open + queue_length, n_at_once
        self._threads = ThreadPoolExecutor(n_open, thread_name_prefix="wisp-job")
        self._changed = threading.Condition()  # notified when a job comes or leaves
        self._admitted: set[threading.Event] = set()  # the cancellation of every job that is open or waits
        self._job_s = FIRST_GUESS_S
        self._succeeded = False
        self._trim = Trimmer()

    @property
    def n_admitted(self) -> int:
        """Jobs that are open or wait."""
        return len(self._admitted)

    def check_room(self, n_coming: int = 0) -> None:
        """Raise QueueFull where a job submitted behind `n_coming` others, which are about to be, would be refused."""
        with self._changed:
            n_jobs = self.n_admitted + n_coming
            if n_jobs >= self.n_places:
                raise QueueFull(min(LONGEST_RETRY_S, math.ceil(self._job_s * n_jobs / self._n_at_once)))

    def submit(self, call: Callable[[], T], cancelled: threading.Event) -> "Future[T]":
        """Have `call` made in a thread, in the caller's context, once one is free. Raises QueueFull at once.

        `cancelled` is the call's to look at; close() sets it. A future that is cancelled in time gives its place up.
        """
        with self._changed:
            self.check_room()
            self._admitted.add(cancelled)
            self._changed.notify_all()
        try:
            # The request's context goes along, so that what the job logs carries the request's id.
            job = _Call(partial(contextvars.copy_context().run, self._made, call, cancelled))
            future = self._threads.submit(job)
        except BaseException:
            self._leave(cancelled)
            raise
        future.add_done_callback(lambda _: job.forget())
        future.add_done_callback(lambda _: self._leave(cancelled))
        future.add_done_callback(lambda _: self._trim())
        return future

    def _made(self, call: Callable[[], T], cancelled: threading.Event) -> T:
        """Make the call. Its place is free by the time that its result is there."""
        try:
            return call()
        finally:
            self._leave(cancelled)

    def _leave(self, cancelled: threading.Event) -> None:
        """Give the place up, for a call that is withdrawn before it is made. Idempotent."""
        with self._changed:
            self._admitted.discard(cancelled)
            self._changed.notify_all()

    def succeeded(self, worked_s: float) -> None:
        """A job has ended well after so many seconds of work, its waiting left out."""
        with self._changed:
            self._job_s += (worked_s - self._job_s) / 4
            self._succeeded = True

    def settle(self, grace_s: float) -> bool:
        """Wait while there are jobs, or `grace_s` for the first to come; True once any has succeeded."""
        with self._changed:
            self._changed.wait_for(lambda: self._admitted, grace_s)
            self._changed.wait_for(lambda: self._succeeded or not self._admitted)
            return self._succeeded

    def close(self) -> None:
        """Cancel what is open and what waits, and end the threads. Idempotent."""
        with self._changed:
            for cancelled in self._admitted:
                cancelled.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
