"""One live session, from `session.created` to its end: takes the client's events, and keeps the session's limits.

Audio is never dropped: while more than `live_buffer_s` of it waits to be heard, or many events wait to be read by the
client, the client's next event isn't read. The session ends when its client leaves or falls silent, when its time is
over, and when the server stops; but in the first case, what was said is committed and transcribed before.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.audio.log_mel import SAMPLE_RATE
from service.errors import (
    InternalError,
    InvalidValue,
    MalformedEvent,
    NothingToCommit,
    NotReady,
    UnsupportedValue,
    WispError,
)
from service.http.api_keys import Rights
from service.http.form.table import shown
from service.http.realtime.audio import Decoder
from service.http.realtime.configuration import HYPOTHESES, Configuration
from service.http.realtime.events import (
    CONVERSATION,
    PLAIN_CHARACTERS,
    UPDATES,
    audio_bytes,
    client_event_id,
    error_event,
    new_id,
    read_event,
    server_event,
)
from service.http.realtime.items import Items
from service.http.realtime.outgoing import Outgoing
from service.http.realtime.places import LivePlace
from service.http.service import Choice, Service
from service.http.websocket import LOST_IN_SCOPE
from service.transcription.listener import Listener

log = logging.getLogger("wisp")

TICK_S = 0.05  # between two looks at how much audio waits
LAST_WORD_S = 0.5  # for a cancelled session to say so
NORMAL, GOING_AWAY, LOST, POLICY, FAULT = 1000, 1001, 1006, 1008, 1011  # close codes
MAX_REASON = 120  # bytes that a close frame has room for, and a little less

T = TypeVar("T")


class _Gone(Exception):
    """The client has left."""


class _End(Exception):
    """The session is to end, after its last words."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class _Fatal(Exception):
    """The session cannot go on: its client gets the error, and the connection ends."""

    def __init__(self, error: WispError) -> None:
        super().__init__(str(error))
        self.error = error


class Session:
    """One connection's."""

    def __init__(
        self,
        websocket: WebSocket,
        service: Service,
        rights: Rights,
        place: LivePlace,
        configuration: Configuration,
    ) -> None:
        self._websocket, self._service, self._rights, self._place = websocket, service, rights, place
        self._configuration = configuration
        self._settings = service.settings
        self._loop = asyncio.get_running_loop()
        self._id, self._ends_at = new_id("sess"), self._loop.time() + self._settings.live_max_s
        self._expires_at = int(time.time() + self._settings.live_max_s)
        self._lost: asyncio.Event = websocket.scope.get(LOST_IN_SCOPE) or asyncio.Event()
        self._failed = asyncio.Event()
        self._outgoing = Outgoing(websocket, self._failed.set)
        self._items = Items(self._outgoing.put, service.live.observer)
        self._decoder = Decoder(configuration.format)
        self._listener: Listener | None = None
        self._held = AsyncExitStack()  # what the listener's model needs
        self._offset_s = 0.0  # when in the session the listener's time began
        self._n_samples = 0
        self._gone = {asyncio.create_task(event.wait()) for event in (self._lost, self._failed)}
        self._watch = {*self._gone, asyncio.create_task(place.stopping.wait())}  # what interrupts every wait
        self._code = LOST

    async def run(self) -> None:
        """Until the session has ended. The connection is accepted and open."""
        self._send("session.created", session=self._shown())
        try:
            await self._until_end()
        except _Gone:
            pass
        except asyncio.CancelledError:  # the server waits no longer
            self._items.give_up(NotReady("The server is stopping."))
            await self._close(GOING_AWAY, "The server is stopping.", LAST_WORD_S)
        except Exception:
            log.exception("a live session failed")
            self._outgoing.put(error_event(InternalError(), None))
            await self._close(FAULT, "internal error", LAST_WORD_S)
        finally:
            self._items.close()
            if self._listener is not None:
                self._listener.close()
            self._outgoing.close()
            for task in self._watch:
                task.cancel()
            await self._held.aclose()
            self._log()

    def _log(self) -> None:
        seconds, n_items = self._n_samples / SAMPLE_RATE, self._items.n_committed
        fields = {"audio_seconds": round(seconds, 3), "items": n_items, "close_code": self._code}
        log.info(
            "live session: %.2f s of audio, %d item%s, closed with %d",
            seconds,
            n_items,
            "" if n_items == 1 else "s",
            self._code,
            extra={"fields": fields},
        )

    async def _until_end(self) -> None:
        try:
            if self._configuration.model:
                await self._begin()
            while True:
                await self._interruptible(self._outgoing.room())
                await self._handle(await self._next())
        except _Fatal as fatal:
            self._outgoing.put(error_event(fatal.error, None))
            await self._close(POLICY if fatal.error.status < 500 else FAULT, str(fatal.error))
        except _End as end:
            with suppress(NothingToCommit):
                await self._commit()
            await self._last_words()
            await self._close(end.code, end.reason)

    async def _next(self) -> Any:
        """The client's next message. Raises _Gone, _End."""
        now = self._loop.time()
        until = min(now + self._settings.live_idle_s, self._ends_at)
        message = await self._interruptible(self._websocket.receive(), until=until)
        if message is None:
            is_idle = self._loop.time() < self._ends_at
            raise _End(NORMAL, "The session was idle." if is_idle else "The session's time is over.")
        if message["type"] == "websocket.disconnect":
            self._code = int(message.get("code") or GOING_AWAY)
            raise _Gone
        return message

    async def _interruptible(self, wanted: Awaitable[T], until: float | None = None) -> T | None:
        """Its result, or None at that time. Raises _Gone, or _End where the server stops, unless it has ended first."""
        task = asyncio.ensure_future(wanted)
        timeout = None if until is None else max(0.0, until - self._loop.time())
        try:
            await asyncio.wait({task, *self._watch}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self._check()
            return None
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _check(self) -> None:
        if self._lost.is_set() or self._failed.is_set():
            raise _Gone
        if self._place.stopping.is_set():
            raise _End(GOING_AWAY, "The server is stopping.")

    async def _handle(self, message: Any) -> None:
        event_id = None
        try:
            text = message.get("text")
            if text is None:
                raise MalformedEvent("Events are text frames.")
            is_large = len(text) > PLAIN_CHARACTERS
            event = await asyncio.to_thread(read_event, text) if is_large else read_event(text)
            event_id = client_event_id(event)
            match event["type"]:
                case "input_audio_buffer.append":
                    most = self._settings.live_append_bytes
                    data = await asyncio.to_thread(audio_bytes, event, most) if is_large else audio_bytes(event, most)
                    del text, event, message  # 15 MiB of audio take 60 MiB as text
                    await self._append(data)
                case "input_audio_buffer.commit":
                    await self._commit()
                case "input_audio_buffer.clear":
                    self._clear()
                case kind if kind in UPDATES:
                    await self._update(event)
                    shown_flat = kind != "session.update"
                    self._send(UPDATES[kind], session=self._shown(flat=shown_flat))
                case kind if kind in CONVERSATION:
                    raise UnsupportedValue(f"This server transcribes and doesn't answer: no {kind}.", param="type")
                case kind:
                    raise InvalidValue(f"There is no event '{shown(kind)}'.", param="type")
        except WispError as error:
            self._outgoing.put(error_event(error, event_id))

    async def _update(self, event: dict[str, Any]) -> None:
        if "session" not in event:
            raise MalformedEvent("The event has no session.", param="session")
        await self._configure(self._configuration.updated(event["session"]))

    async def _begin(self) -> None:
        """Get ready to listen as configured so far. Raises _Fatal: the session would be of no use."""
        try:
            await self._configure(self._configuration)
        except WispError as error:
            raise _Fatal(error) from None

    async def _configure(self, configuration: Configuration) -> None:
        """Work as this says from now on. Raises WispError; then as before."""
        choice = Choice(self._service, self._rights)
        if configuration.model:
            choice.take(configuration.model)
        choice.check(configuration.options)
        await self._listen(choice, configuration)
        self._configuration = configuration
        self._decoder.set_format(configuration.format)
        self._items.has_hypotheses = HYPOTHESES in configuration.include

    async def _listen(self, choice: Choice, configuration: Configuration) -> None:
        """Have a listener with the model and the options."""
        held = AsyncExitStack()
        try:
            entering = held.enter_async_context(choice.transcriber(configuration.options))
            transcriber = await self._interruptible(entering)
            assert transcriber is not None  # there is no time limit
            if self._listener is not None and self._listener.transcriber is transcriber:
                self._listener.options = configuration.options
                if self._listener.cutting != configuration.cutting:
                    self._listener.cutting = configuration.cutting
                return
            if self._listener is not None:
                with suppress(NothingToCommit):
                    await self._commit()
                await self._interruptible(self._items.completed())
                self._listener.close()
            self._listener = Listener(
                transcriber, configuration.options, cutting=configuration.cutting, on_words=self._items.words
            )
            self._offset_s = self._n_samples / SAMPLE_RATE
            held, self._held = self._held, held
        finally:
            await held.aclose()

    async def _append(self, data: bytes) -> None:
        if self._listener is None:
            await self._begin()
        for samples in self._decoder.blocks(data):
            await self._hear(samples)
            await self._until_heard()

    async def _hear(self, samples: "np.ndarray[Any, np.dtype[np.float32]]") -> None:
        assert self._listener is not None
        self._n_samples += len(samples)
        has_vad = self._listener.cutting is not None
        self._items.take(await self._listener.hear(samples), self._offset_s, has_vad=has_vad)

    async def _until_heard(self) -> None:
        """Wait while much audio waits; not once the session ends, when what has come is all there will be.

        Raises _Gone.
        """
        assert self._listener is not None
        while True:
            if self._lost.is_set() or self._failed.is_set():
                raise _Gone
            is_ending = self._place.stopping.is_set() or self._loop.time() >= self._ends_at
            if is_ending or self._listener.buffered_s <= self._settings.live_buffer_s:
                return
            await asyncio.wait(self._watch, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)

    async def _commit(self) -> None:
        if self._listener is None:
            raise NothingToCommit
        if (rest := self._decoder.rest()).size:
            await self._hear(rest)
        self._items.take(self._listener.commit(), self._offset_s, has_vad=False)

    def _clear(self) -> None:
        self._decoder.rest()
        if self._listener is not None:
            self._listener.clear()
        self._items.forget_uncommitted()
        self._send("input_audio_buffer.cleared")

    async def _last_words(self) -> None:
        """Wait for what is still awaited, unless the client leaves first."""
        leaving = asyncio.create_task(self._leaves())
        completing = asyncio.create_task(self._items.completed())
        try:
            await asyncio.wait({completing, leaving, *self._gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            completing.cancel()
            leaving.cancel()

    async def _leaves(self) -> None:
        """Ends when the client has left; what else it sends is not read any more."""
        with suppress(WebSocketDisconnect, RuntimeError):
            while (await self._websocket.receive())["type"] != "websocket.disconnect":
                pass

    async def _close(self, code: int, reason: str, seconds: float | None = None) -> None:
        """End the connection after all events, or after that many seconds."""
        self._code = code
        closing = asyncio.create_task(self._goodbye(code, reason))
        await asyncio.wait({closing}, timeout=seconds)
        closing.cancel()

    async def _goodbye(self, code: int, reason: str) -> None:
        await self._outgoing.flushed()
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._websocket.close(code, reason.encode()[:MAX_REASON].decode(errors="ignore"))

    def _send(self, kind: str, **fields: Any) -> None:
        self._outgoing.put(server_event(kind, **fields))

    def _shown(self, *, flat: bool = False) -> dict[str, Any]:
        model = self._service.catalogue.default.name
        session = self._configuration.shown_flat(model) if flat else self._configuration.shown(model)
        return {"id": self._id, "expires_at": self._expires_at, **session}
