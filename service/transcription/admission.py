"""Decides which jobs run, each in a thread: long ones leave room for short ones, clients leave room for each other.

Each job counts as short until it proves long. Up to `n_open` short jobs are open, and as many of the longest, plus one
for each shorter step of `STEPS_S`, so that a place for a short job is always free soon. A job too long for the room
left is set aside: it gives up its place before answering and restarts later. A job that waits for its model steps
aside: it stays open, but others may be open in its place. The client with the fewest open jobs goes first, then the
earliest job, smaller uploads before larger ones.
"""

import contextvars
import itertools
import math
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from service.errors import ClientGone, Overloaded, QueueFull, SetAside
from service.transcription.memory import Trimmer
from service.transcription.run import Run

FIRST_GUESS_S = 1.0  # how long a job works, before any has finished: only Retry-After needs it
LONGEST_RETRY_S = 60
RESERVE = 4  # one extra for every 4 places: for clients that hold few, and for short jobs
STEPS_S = (30.0, 120.0, 600.0)  # of audio: one window, some, many
WAIT_PACE = 64 * 1024  # bytes of its upload that delay a job's rank by one second

current_client: contextvars.ContextVar[str] = contextvars.ContextVar("client", default="")  # who sent the request


def has_room(held: Mapping[str, int], client: str, n_places: int) -> bool:
    """Whether `client` may take one more place.

    When all are taken, clients with few places share a quarter more. Places of unknown clients count against everyone.
    """
    n_held = sum(held.values())
    n_own = sum(n for name, n in held.items() if name in (client, ""))
    return n_held < n_places or n_own < n_places + reserve(n_places) - n_held


def step_of(seconds: float) -> int:
    """How many of STEPS_S a job with this much audio exceeds."""
    return bisect_left(STEPS_S, seconds)


def reserve(n_places: int) -> int:
    """A quarter more, at least one."""
    return max(1, n_places // RESERVE)


class Admission:
    """Threads for the open jobs, and the places of all. Thread-safe; owns its threads, which end with their jobs."""

    def __init__(self, *, n_open: int, queue_length: int, n_at_once: int) -> None:
        """`queue_length` more jobs may wait; `n_at_once` of the open ones work at the same time."""
        self.n_places, self._n_open, self._n_at_once = n_open + queue_length, n_open, n_at_once
        self._changed = threading.Condition(threading.RLock())  # notified when a job comes or leaves
        self._admitted: set[Run] = set()  # open or waiting
        self._waiting: list[Run] = []
        self._open: set[Run] = set()
        self._threads: set[threading.Thread] = set()
        self._numbers = itertools.count(1)
        self._is_closed = False
        self._job_s = FIRST_GUESS_S
        self._succeeded = False
        self._trim = Trimmer()

    @property
    def n_admitted(self) -> int:
        """Jobs that are open or waiting."""
        return len(self._admitted)

    def check_room(self, coming: Mapping[str, int] | None = None) -> None:
        """Raise QueueFull if a job of the current client would be rejected. `coming`: uploads by client."""
        with self._changed:
            held = Counter(job.client for job in self._admitted) + Counter(coming or {})
            if not has_room(held, current_client.get(), self.n_places):
                raise QueueFull(min(LONGEST_RETRY_S, math.ceil(self._job_s * held.total() / self._n_at_once)))

    def submit(self, job: Run, call: Callable[[], Any], *, n_bytes: int = 0) -> None:
        """Run `call` in a thread, in the job's context, once there is a place. Raises QueueFull immediately.

        It runs again after SetAside; its result or error becomes the future's. A job cancelled while waiting ends
        immediately; a running `call` must notice itself. `n_bytes`: the size of its upload.
        """
        job.call, job.client, job.rank = call, current_client.get(), time.monotonic() + n_bytes / WAIT_PACE
        job.on_cancel = lambda: self._drop(job)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("no more jobs are accepted")
            self.check_room()
            self._admitted.add(job)
            self._waiting.append(job)
            job.future.add_done_callback(lambda _: self._trim())
            self._open_next()
            self._changed.notify_all()

    def _open_next(self) -> None:
        """Start waiting jobs while there is room."""
        while job := self._next():
            self._waiting.remove(job)
            self._open.add(job)
            name = f"wisp-job-{next(self._numbers)}"
            thread = threading.Thread(target=self._run, args=(job,), name=name, daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:  # the system's limit of threads
                self._threads.discard(thread)
                self._leave(job)
                job.future.set_exception(Overloaded())

    def _next(self) -> Run | None:
        fitting = [] if self._is_closed else [job for job in self._waiting if self._fits(job)]
        n_of = Counter(job.client for job in self._open)
        return min(fitting, key=lambda job: (n_of[job.client], job.rank), default=None)

    def _fits(self, job: Run) -> bool:
        """Whether there is room to open this job."""
        counted = [other for other in self._open if not other.is_aside]
        most = self._n_open + max(len(STEPS_S), reserve(self._n_open))
        if len(counted) >= most or len(self._open) >= 2 * most or self._waits_enough(job.model):
            return False
        if not job.length:
            return sum(not other.length for other in counted) < self._n_open
        return all(self._n_more(step) > 0 for step in range(1, job.length + 1))

    def _n_more(self, step: int) -> int:
        """How many more jobs of at least that many steps may be open; negative if there are too many."""
        n_as_long = sum(other.length >= step for other in self._open if not other.is_aside)
        return self._n_open + len(STEPS_S) - step - n_as_long

    def _waits_enough(self, model: str) -> bool:
        """Whether more of this model's jobs would only wait for it too."""
        same = [job for job in self._open if job.model == model]
        return len(same) >= self._n_open and any(job.is_aside for job in same)

    @contextmanager
    def stepped_aside(self, job: Run) -> Iterator[None]:
        """A block in which the job waits for its model, and others may be open in its place. For its own thread."""
        self._step(job, is_aside=True)
        try:
            yield
        finally:
            self._step(job, is_aside=False)

    def _step(self, job: Run, *, is_aside: bool) -> None:
        with self._changed:
            job.is_aside = is_aside
            self._open_next()

    def _run(self, job: Run) -> None:
        try:
            self._make(job)
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _make(self, job: Run) -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            assert job.call is not None
            result = job.context.run(job.call)
        except SetAside:
            if self._set_aside(job):
                return
            failure = ClientGone()
        except BaseException as error:
            failure = error
        # Its place is free before its result is set.
        self._leave(job)
        if failure is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(failure)

    def lasts(self, job: Run, seconds: float) -> None:
        """The job, if it was submitted here, has at least this much audio. For its own thread.

        Raises SetAside if too many jobs of that length are open; the job runs again later. Idempotent.
        """
        step = step_of(seconds)
        if job not in self._open or step <= job.length:
            return
        with self._changed:
            known, job.length = job.length, step
            if any(self._n_more(step) < 0 for step in range(known + 1, step + 1)):
                self._open.discard(job)  # now, so that others no longer count it
                raise SetAside
            self._open_next()

    def _set_aside(self, job: Run) -> bool:
        """Let it wait for a long job's place. False if it was cancelled."""
        with self._changed:
            wanted = not (self._is_closed or job.is_cancelled)
            if wanted:
                self._waiting.append(job)
            self._open_next()
            return wanted

    def _drop(self, job: Run) -> None:
        """End a cancelled job if it is waiting."""
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
            self._leave(job)
        job.future.set_exception(ClientGone())

    def _leave(self, job: Run) -> None:
        """Give up its place."""
        with self._changed:
            self._admitted.discard(job)
            self._open.discard(job)
            job.call = None
            self._open_next()
            self._changed.notify_all()

    def succeeded(self, worked_s: float) -> None:
        """Record a successful job's seconds of work, without its waits."""
        with self._changed:
            self._job_s += (worked_s - self._job_s) / 4
            self._succeeded = True

    def settle(self, grace_s: float) -> bool:
        """Wait until no jobs are left, up to `grace_s` for the first; True once any has succeeded."""
        with self._changed:
            self._changed.wait_for(lambda: self._admitted, grace_s)
            self._changed.wait_for(lambda: self._succeeded or not self._admitted)
            return self._succeeded

    def close(self) -> None:
        """Cancel all jobs and wait for their threads to end. Idempotent."""
        with self._changed:
            self._is_closed = True
            jobs, threads = list(self._admitted), list(self._threads)
        for job in jobs:
            job.cancel()
        for thread in threads:
            thread.join()
