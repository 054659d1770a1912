"""One Wyoming connection: reads its events, sends info and transcripts, enforces the limits of live sessions.

An error ends the connection: Home Assistant ignores error events and would wait forever for a transcript.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from wyoming.error import Error
from wyoming.ping import Pong

from service.audio.pcm import PcmFormat
from service.errors import InternalError, InvalidValue, NotReady, WispError
from service.http.api_keys import Rights
from service.http.form.fields import DETECTED
from service.http.form.table import MAX_KEYWORDS, shown
from service.http.realtime.places import LivePlace
from service.http.service import Choice, Service
from service.models.languages import language_code
from service.transcription.types import Options
from service.wyoming.events import Eventable, Gone, Head, discard, read_head, read_piece, send
from service.wyoming.hearing import Answer, Hearing
from service.wyoming.info import info

log = logging.getLogger("wisp")

FIRST_EVENT_S = 30.0  # for a new connection to send its first event
LINGER_S = 5.0  # for a client to read an error; meanwhile, what it sends is discarded
END_S = 1.0  # the same, for a last transcript

T = TypeVar("T")


class _End(Exception):
    """The session ends after its last transcript."""


class Session:
    """From a connection's first event to its end."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, service: Service, place: LivePlace
    ) -> None:
        self._reader, self._writer, self._service = reader, writer, service
        self._loop = asyncio.get_running_loop()
        self._ends_at = self._loop.time() + service.settings.live_max_s
        self._idle_s = min(FIRST_EVENT_S, service.settings.live_idle_s)
        self._stopping = asyncio.create_task(place.stopping.wait())
        self._asked = Options()
        self._model = ""
        self._hearing: Hearing | None = None
        self._held = AsyncExitStack()  # what the hearing's model needs
        self._answering: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until the client leaves or its time is over. The owner closes the connection."""
        try:
            try:
                while True:
                    await self._handle(await self._within_time(read_head(self._reader)))
                    self._idle_s = self._service.settings.live_idle_s
            except _End:
                await self._stop()
                await self._answered()
                await linger(self._reader, self._writer, END_S)
        except Gone:
            pass
        except WispError as error:
            await self._fail(error)
        except asyncio.CancelledError:  # the server's grace period is over
            with suppress(Gone):
                self._send(_error(NotReady("The server is stopping.")))
            raise
        except Exception:
            log.exception("a Wyoming session failed")
            await self._fail(InternalError())
        finally:
            self._stopping.cancel()
            if self._answering is not None:
                self._answering.cancel()
            if self._hearing is not None:
                self._hearing.close()
            await self._held.aclose()

    async def _within_time(self, reading: Coroutine[Any, Any, T]) -> T:
        """Wait for the client. Raises _End at a limit, and the error of a transcript that fails meanwhile."""
        if self._stopping.done() or self._loop.time() >= self._ends_at:  # a busy client always has an event ready
            reading.close()
            raise _End
        task = asyncio.create_task(reading)
        try:
            while not task.done():
                waiting = {task, self._stopping} | ({self._answering} if self._answering is not None else set())
                idle_s = None if self._answering is not None else self._idle_s
                left_s = self._ends_at - self._loop.time()
                timeout = left_s if idle_s is None else min(idle_s, left_s)
                done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if self._answering in done:
                    await self._answered()
                elif task not in done:
                    raise _End
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _handle(self, head: Head) -> None:
        match head.type:
            case "describe":
                self._send(await asyncio.to_thread(info, self._service))
            case "ping":
                self._send(Pong(head.text("text")))
            case "transcribe":
                await self._stop()
                await self._answered()
                self._ask(head)
            case "audio-start":
                _format(head)
                await self._begin()
            case "audio-chunk":
                await self._hear(head)
                return
            case "audio-stop":
                if self._hearing is None:
                    await self._answered()
                    Answer(self._send, None).end("", None)
                await self._stop()
        # The protocol says to ignore other events.
        n_left = head.n_payload
        while n_left:
            n_left -= len(await self._within_time(read_piece(self._reader, n_left)))

    def _ask(self, head: Head) -> None:
        """Set the options for the next audio. Raises InvalidValue, MalformedEvent."""
        language, code = head.text("language"), None
        if language is not None and language.strip().lower() != DETECTED:
            code = language_code(language)
            if code is None:
                raise InvalidValue(f"'{shown(language)}' is not a language of Whisper.", param="language")
        keywords = (*head.texts("transcript_names"), *head.texts("transcript_terms"))
        self._model = head.text("name") or ""
        self._asked = Options(language=code, keywords=keywords[:MAX_KEYWORDS])

    async def _begin(self) -> None:
        """Begin an utterance. Raises WispError if no model here can transcribe it."""
        if self._hearing is not None:  # the last one had no audio-stop
            await self._stop()
        await self._answered()
        choice = Choice(self._service, Rights(), may_route=True)
        if self._model:
            choice.take(self._model)
        transcriber = await self._held.enter_async_context(choice.transcriber(self._asked))
        self._hearing = Hearing(transcriber, self._asked, self._send, self._service.live.observer)

    async def _hear(self, head: Head) -> None:
        format = _format(head)
        if self._hearing is None:
            await self._begin()
        assert self._hearing is not None
        n_left = head.n_payload
        while n_left:
            piece = await self._within_time(read_piece(self._reader, n_left))
            n_left -= len(piece)
            await self._hearing.hear(format, piece)

    async def _stop(self) -> None:
        """End the utterance, and begin to answer it."""
        if self._hearing is not None:
            hearing, self._hearing = self._hearing, None
            self._answering = asyncio.create_task(self._answer(hearing))

    async def _answer(self, hearing: Hearing) -> None:
        try:
            await hearing.stop()
            await hearing.answer()
        finally:
            hearing.close()

    async def _answered(self) -> None:
        """Wait for the pending transcript. Raises WispError, Gone."""
        if self._answering is not None:
            answering, self._answering = self._answering, None
            try:
                await answering
            finally:
                answering.cancel()
            held, self._held = self._held, AsyncExitStack()
            await held.aclose()
            self._asked, self._model = Options(), ""

    def _send(self, event: Eventable) -> None:
        send(self._writer, event)

    async def _fail(self, error: WispError) -> None:
        """Send the error, and give the client time to read it."""
        log.warning("a Wyoming session ends with an error: %s", error)
        await refuse(self._reader, self._writer, error, LINGER_S)


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: WispError, linger_s: float) -> None:
    """End a connection with an error."""
    with suppress(Gone):
        send(writer, _error(error))
        await linger(reader, writer, linger_s)


async def linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Let the client read the last event. If it is still sending, an immediate close could destroy that."""
    try:
        writer.write_eof()
        async with asyncio.timeout(seconds):
            await discard(reader)
    except (OSError, TimeoutError):
        pass


def _error(error: WispError) -> Error:
    return Error(str(error), code=error.code)


def _format(head: Head) -> PcmFormat:
    try:
        return PcmFormat(head.number("rate"), head.number("width"), head.number("channels"))
    except ValueError as error:
        raise InvalidValue(str(error)) from None
