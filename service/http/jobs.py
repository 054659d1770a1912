"""Runs a request's transcription off the event loop, brings its events back, and cancels it if the client leaves."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

from service.errors import NotReady, WispError
from service.http.sse import COMMENT, EventStream
from service.transcription.reading import Upload
from service.transcription.transcriber import Options, Segment, Transcriber, Transcription

log = logging.getLogger("wisp")

FIRST_EVENT_S = 1.0  # how long a stream's status waits for the first segment or a failure
COMMENT_EVERY_S = 10.0  # during silence: proxies close a stream that is silent for a minute


def mark_as_seen(ended: "asyncio.Future[Any]") -> None:
    """Mark a future's exception as seen, because asyncio logs exceptions that nobody retrieves."""
    if not ended.cancelled():
        ended.exception()


class Job:
    """A transcription in another thread, with its events in the event loop; cancelled if the client leaves."""

    def __init__(
        self,
        transcriber: Transcriber,
        upload: Upload,
        options: Options,
        leaving: "asyncio.Task[None]",
        under_way: "set[Job]",
    ) -> None:
        """Start. `under_way` holds the job until its transcription has ended, which closes the upload."""
        loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Segment | Future[Transcription]] = asyncio.Queue()

        def notify(event: "Segment | Future[Transcription]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, because the server has stopped
                loop.call_soon_threadsafe(self.events.put_nowait, event)

        self.run = transcriber.submit(upload, options, notify)
        self.run.future.add_done_callback(lambda _: upload.file.close())
        self.run.future.add_done_callback(notify)
        under_way.add(self)
        self.run.future.add_done_callback(lambda _: under_way.discard(self))
        self._leaving = leaving
        leaving.add_done_callback(lambda _: self.run.cancel())

    def give_up(self) -> None:
        """The server stops waiting: the client gets an error after any earlier events."""
        given_up: Future[Transcription] = Future()
        given_up.set_exception(NotReady("The server is stopping."))
        self.events.put_nowait(given_up)
        self.run.cancel()

    def _finish(self) -> None:
        """Stop everything about the job, whatever its result."""
        self._leaving.cancel()
        self.run.cancel()

    async def result(self) -> Transcription:
        """The whole transcription. Raises WispError."""
        try:
            while True:
                event = await self.events.get()
                if isinstance(event, Future):
                    return event.result()
        finally:
            self._finish()

    async def frames(self, stream: EventStream) -> AsyncIterator[bytes]:
        """Server-sent events, with comments during silence. Raises WispError for an early failure."""
        try:
            event = await self._next(FIRST_EVENT_S)
            if isinstance(event, Future):
                event.result()
        except BaseException:
            self._finish()
            raise
        return self._frames(event, stream)

    async def _next(self, seconds: float) -> "Segment | Future[Transcription] | None":
        """The next event, or None after that many seconds."""
        try:
            async with asyncio.timeout(seconds):
                return await self.events.get()
        except TimeoutError:
            return None

    async def _frames(
        self, event: "Segment | Future[Transcription] | None", stream: EventStream
    ) -> AsyncIterator[bytes]:
        try:
            while not isinstance(event, Future):
                yield (stream.segment(event) if event else b"") or COMMENT
                event = await self._next(COMMENT_EVERY_S)
            try:
                yield stream.done(event.result())
            except WispError as error:
                log.warning("the stream ends with an error: %s", error)
                yield stream.error(error)
        finally:
            self._finish()
