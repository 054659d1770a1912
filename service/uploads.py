"""Uploads on their way in: each holds the place of the job that it becomes, a slow one until another wants it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator

from service.admission import Admission
from service.errors import QueueFull, UploadTooSlow

LOADING_RETRY_S = 5  # no job has a place before the model is loaded
SOUND_PACE = 64 * 1024  # bytes a second that an upload has come with on average, or it may lose its place to another


class UploadPlace:
    """The place of an upload that is under way: how much of it has come, and since when. For the event loop's thread.

    Where all places are taken, an upload that is slow by then loses its own.
    """

    def __init__(self, floor_s: float) -> None:
        """`floor_s`: the seconds in which no upload is slow."""
        self.floor_s, self.n_bytes, self.is_lost = floor_s, 0, False
        self._began_at = time.monotonic()
        self._reading: asyncio.Timeout | None = None

    def pace(self) -> float:
        """Bytes a second, on average."""
        return self.n_bytes / max(time.monotonic() - self._began_at, 1e-9)

    def is_slow(self) -> bool:
        """Whether it is still read and has taken longer than `floor_s`, and a second for every `SOUND_PACE` bytes."""
        taken_s = time.monotonic() - self._began_at
        return self._reading is not None and taken_s > self.floor_s + self.n_bytes / SOUND_PACE

    def lose(self) -> None:
        """Another request has it now."""
        self.is_lost = True
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def counted(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The same chunks."""
        async for chunk in body:
            self.n_bytes += len(chunk)
            yield chunk

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
            raise UploadTooSlow(self.floor_s, SOUND_PACE, is_full=True)


class Uploads:
    """Bodies on their way in: each holds the place of the job that it becomes. For one thread, the event loop's."""

    def __init__(self, n_places: int, *, floor_s: float) -> None:
        """`n_places`: how many there may be while the model loads, and no job has begun; `floor_s`: see UploadPlace."""
        self.n_places, self.floor_s = n_places, floor_s
        self._under_way: set[UploadPlace] = set()

    def n_under_way(self) -> int:
        """Uploads that hold places."""
        return len(self._under_way)

    @contextlib.contextmanager
    def reserve(self, admission: Admission | None) -> Iterator[UploadPlace]:
        """Hold a place, to the end of the upload or until its job is submitted. Raises QueueFull.

        Where all are taken, that of the slowest upload that is slow. `admission`: None while the model loads.
        """
        try:
            self._check_room(admission)
        except QueueFull:
            slowest = min((place for place in self._under_way if place.is_slow()), key=UploadPlace.pace, default=None)
            if slowest is None:
                raise
            slowest.lose()
            self._under_way.discard(slowest)
        place = UploadPlace(self.floor_s)
        self._under_way.add(place)
        try:
            yield place
        finally:
            self._under_way.discard(place)

    def _check_room(self, admission: Admission | None) -> None:
        if admission is not None:
            admission.check_room(self.n_under_way())
        elif self.n_under_way() >= self.n_places:
            raise QueueFull(LOADING_RETRY_S)
