"""Uploads in progress: each holds the place of its future job, and disk space.

An upload takes a place after its first 4 KB, so a connection that only trickles bytes holds none. When places or disk
run out, the slowest of the slow uploads loses its place.
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
FIRST_BYTES = 4096  # of a body, after which it holds a place
SOUND_PACE = 64 * 1024  # bytes a second; a slower upload may lose its place to another
SLOW_AFTER_S = 3.0  # measured over this many seconds, up to twice as many
SPOOL_SHARE = 3 / 4  # of the folder's free space at start, for all uploads
LARGEST_SHARE = 3  # an upload may use this many times the free space, which leaves room for small ones


class UploadPlace:
    """The place of an upload in progress: its bytes so far, and when they came. For the event loop's thread."""

    def __init__(self, uploads: "Uploads", admission: Admission | None) -> None:
        self.client, self.n_bytes, self.admission = current_client.get(), 0, admission
        self.is_counted = self.is_lost = self.is_kept = False
        self._uploads = uploads
        self.came_at = time.monotonic()  # time of the latest bytes
        self._since = self._mark = (self.came_at, 0)  # (time, bytes): the pace is measured from the first
        self._reading: asyncio.Timeout | None = None

    def pace(self) -> float:
        """Recent bytes a second; 0 after `slow_after_s` without any."""
        now, (since, n_bytes) = time.monotonic(), self._since
        if now - self.came_at >= self._uploads.slow_after_s:
            return 0.0
        return (self.n_bytes - n_bytes) / max(now - since, 1e-9)

    def is_slow(self) -> bool:
        """Whether it is still being read, has been for `slow_after_s`, and is slower than `SOUND_PACE`."""
        is_old = time.monotonic() - self._since[0] >= self._uploads.slow_after_s
        return self._reading is not None and not self.is_lost and is_old and self.pace() < SOUND_PACE

    def lose(self) -> None:
        """Give its place to another request."""
        self.is_counted, self.is_lost = False, True
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def counted(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Pass the chunks through and count them. Raises QueueFull if no place is free, and NoSpace."""
        async for chunk in body:
            self.add(len(chunk))
            if self.n_bytes >= FIRST_BYTES:
                self._uploads.count(self)
            yield chunk
        self._uploads.count(self)

    def add(self, n_bytes: int) -> None:
        """Count more bytes. Raises NoSpace."""
        self.came_at = time.monotonic()
        if self.came_at - self._mark[0] >= self._uploads.slow_after_s:
            self._since, self._mark = self._mark, (self.came_at, self.n_bytes)
        self._uploads.spool(self, n_bytes)

    def keep_until(self, job: "Future[Any]") -> None:
        """Keep its bytes on disk until that job has ended."""
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
    """Uploads in progress and their bytes. For the event loop's thread only, except forget()."""

    def __init__(self, n_places: int, *, spool_bytes: int = 0, slow_after_s: float = SLOW_AFTER_S) -> None:
        """`n_places`: their maximum while the model loads and no job has started.

        `spool_bytes`: for all uploads; 0 takes three quarters of the folder's free space now.
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
        """An upload, until its end or until its job is submitted. Raises QueueFull if it would find no place.

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
        """Give it a place: a free one or, if all are taken, that of the slowest of the slow uploads.

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
        """Grow it by `n_bytes`. If that is too much of the free space, slow uploads give way, no more than needed.

        Raises NoSpace if all of their bytes would not be enough; then none gives way.
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
        """Count its bytes as freed. Thread-safe."""
        with self._lock:
            self.n_spooled -= place.n_bytes
            place.n_bytes = 0

    def _slowest(self, is_one: Callable[[UploadPlace], bool]) -> list[UploadPlace]:
        """The slow uploads that `is_one` selects, slowest first."""
        slow = [place for place in self._under_way if is_one(place) and place.is_slow()]
        return sorted(slow, key=lambda place: (place.pace(), place.came_at))

    def _check_room(self, admission: Admission | None) -> None:
        coming = Counter(place.client for place in self._under_way if place.is_counted)
        if admission is not None:
            admission.check_room(coming)
        elif not has_room(coming, current_client.get(), self.n_places):
            raise QueueFull(LOADING_RETRY_S)
