"""Uploads on their way in: each holds the place of the job that it becomes, and room on the disk, until it is slow.

A place counts from an upload's first kilobytes on: a connection that sends a byte now and then holds none. Where all
are taken, or the disk has no room, the slowest of the slow uploads gives way.
"""

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Any

from service.errors import NoSpace, QueueFull, UploadTooSlow
from service.transcription.admission import Admission, current_client, has_room

LOADING_RETRY_S = 5  # no job has a place before the model is loaded
FIRST_BYTES = 4096  # of a body: from then on it holds a place
SOUND_PACE = 64 * 1024  # bytes a second that an upload comes with, or it may lose its place to another
SLOW_AFTER_S = 3.0  # over as many seconds as this, and up to twice as many
SPOOL_SHARE = 3 / 4  # of what the folder has free at the start, all uploads together
LARGEST_SHARE = 3  # an upload may grow to this many times what is left, so that small ones find room where large do not


class UploadPlace:
    """The place of an upload that is under way: how much of it has come, and when. For the event loop's thread."""

    def __init__(self, uploads: "Uploads", admission: Admission | None) -> None:
        self.client, self.n_bytes, self.admission = current_client.get(), 0, admission
        self.is_counted = self.is_lost = self.is_kept = False
        self._uploads = uploads
        self.came_at = time.monotonic()  # the latest bytes
        self._since = self._mark = (self.came_at, 0)  # when there were how many: the pace is taken from the first
        self._reading: asyncio.Timeout | None = None

    def pace(self) -> float:
        """Bytes a second of late, 0 where nothing has come for `slow_after_s`."""
        now, (since, n_bytes) = time.monotonic(), self._since
        if now - self.came_at >= self._uploads.slow_after_s:
            return 0.0
        return (self.n_bytes - n_bytes) / max(now - since, 1e-9)

    def is_slow(self) -> bool:
        """Whether it is still read, has been for `slow_after_s`, and comes with less than `SOUND_PACE`."""
        is_old = time.monotonic() - self._since[0] >= self._uploads.slow_after_s
        return self._reading is not None and not self.is_lost and is_old and self.pace() < SOUND_PACE

    def lose(self) -> None:
        """Another request has it now."""
        self.is_counted, self.is_lost = False, True
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def counted(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The same chunks. Raises QueueFull where there is no place for them, and NoSpace."""
        async for chunk in body:
            self.add(len(chunk))
            if self.n_bytes >= FIRST_BYTES:
                self._uploads.count(self)
            yield chunk
        self._uploads.count(self)

    def add(self, n_bytes: int) -> None:
        """More of it has come. Raises NoSpace."""
        self.came_at = time.monotonic()
        if self.came_at - self._mark[0] >= self._uploads.slow_after_s:
            self._since, self._mark = self._mark, (self.came_at, self.n_bytes)
        self._uploads.spool(self, n_bytes)

    def keep_until(self, job: "Future[Any]") -> None:
        """Its bytes are on the disk until that job has ended."""
        self.is_kept = True
        job.add_done_callback(lambda _: self._uploads.forget(self))

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """A block that reads the body. Raises UploadTooSlow once the place is lost."""
        try:
            async with asyncio.timeout(None) as self._reading:
                yield
        except TimeoutError:
            if not self.is_lost:
                raise
        finally:
            self._reading = None
        if self.is_lost:
            raise UploadTooSlow(self._uploads.slow_after_s, SOUND_PACE, is_full=True)


class Uploads:
    """Bodies on their way in, and their bytes. For one thread, the event loop's, but for forget()."""

    def __init__(self, n_places: int, *, spool_bytes: int = 0, slow_after_s: float = SLOW_AFTER_S) -> None:
        """`n_places`: how many there may be while the model loads, and no job has begun.

        `spool_bytes`: of all uploads together; 0 takes three quarters of what the folder for them has free now.
        """
        self.n_places, self.slow_after_s = n_places, slow_after_s
        self.spool_bytes = spool_bytes or int(shutil.disk_usage(tempfile.gettempdir()).free * SPOOL_SHARE)
        self._under_way: set[UploadPlace] = set()
        self._lock = threading.Lock()
        self.n_spooled = 0

    def n_under_way(self) -> int:
        """Uploads that hold places."""
        return sum(place.is_counted for place in self._under_way)

    @contextlib.contextmanager
    def reserve(self, admission: Admission | None) -> Iterator[UploadPlace]:
        """An upload, to its end or until its job is submitted. Raises QueueFull where it would find no place.

        `admission`: None while the model loads.
        """
        if not any(place.is_slow() for place in self._under_way):
            self._check_room(admission)
        place = UploadPlace(self, admission)
        self._under_way.add(place)
        try:
            yield place
        finally:
            self._under_way.discard(place)
            if not place.is_kept:
                self.forget(place)

    def count(self, place: UploadPlace) -> None:
        """From now on it holds a place: a free one, or where all are taken that of the slowest upload that is slow.

        Raises QueueFull. Idempotent.
        """
        if place.is_counted or place.is_lost:
            return
        try:
            self._check_room(place.admission)
        except QueueFull:
            slow = self._slowest(lambda other: other.is_counted)
            if not slow:
                raise
            slow[0].lose()
        place.is_counted = True

    def spool(self, place: UploadPlace, n_bytes: int) -> None:
        """It grows by `n_bytes`. Where that is too much of what is left, slow uploads give way, no more than needed.

        Raises NoSpace where all of their bytes would not be enough; then none gives way.
        """
        with self._lock:
            self.n_spooled += n_bytes
            place.n_bytes += n_bytes
            left = self.spool_bytes - self.n_spooled
        if place.n_bytes <= LARGEST_SHARE * left:
            return
        slow = iter(self._slowest(lambda other: other is not place and other.n_bytes > 0))
        lost: list[UploadPlace] = []
        while place.n_bytes > LARGEST_SHARE * left:
            other = next(slow, None)
            if other is None:
                raise NoSpace
            left += other.n_bytes
            lost.append(other)
        for other in lost:
            other.lose()
            self.forget(other)

    def forget(self, place: UploadPlace) -> None:
        """Its bytes are gone. Thread-safe."""
        with self._lock:
            self.n_spooled -= place.n_bytes
            place.n_bytes = 0

    def _slowest(self, is_one: Callable[[UploadPlace], bool]) -> list[UploadPlace]:
        """The slow uploads of those that `is_one`, the slowest first."""
        slow = [place for place in self._under_way if is_one(place) and place.is_slow()]
        return sorted(slow, key=lambda place: (place.pace(), place.came_at))

    def _check_room(self, admission: Admission | None) -> None:
        coming = Counter(place.client for place in self._under_way if place.is_counted)
        if admission is not None:
            admission.check_room(coming)
        elif not has_room(coming, current_client.get(), self.n_places):
            raise QueueFull(LOADING_RETRY_S)
