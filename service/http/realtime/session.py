"""One live session, from `session.created` to its end: handles the client's events and enforces the session's limits.

Audio is never dropped. The client's next event isn't read while more than `live_buffer_s` of audio, many transcripts or
many outgoing events are pending. The session ends when the client leaves or is idle, when its time is over, and when
the server stops. Unless the client has left, what was said is first committed and transcribed.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.audio.log_mel import SAMPLE_RATE
from service.errors import (
    DeadlineExceeded,
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
from service.http.realtime.configuration import Configuration
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
from service.http.realtime.names import HYPOTHESES
from service.http.realtime.outgoing import Outgoing
from service.http.realtime.places import LivePlace
from service.http.service import Choice, Service
from service.http.websocket import LOST_IN_SCOPE
from service.transcription.listener import Listener

log = logging.getLogger("wisp")

TICK_S = 0.05  # between two checks of the pending audio
CLOSE_S = 30.0  # for the client to read the last events
LAST_WORD_S = 0.5  # the same, for a cancelled session
NORMAL, GOING_AWAY, LOST, POLICY, FAULT = 1000, 1001, 1006, 1008, 1011  # close codes
TIME_IS_OVER = "The session's time is over."
MAX_REASON = 120  # bytes; a close frame has room for 123

T = TypeVar("T")


class _Gone(Exception):
    """The client has left."""


class _End(Exception):
    """The session ends after its last words."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class _Fatal(Exception):
    """The session cannot continue: send the error and close the connection."""

    def __init__(self, error: WispError) -> None:
        super().__init__(str(error))
        self.error = error


class Session:
    """Serves one connection."""

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
        self._offset_s = 0.0  # start of the listener's time within the session
        self._n_samples = 0
        self._gone = {asyncio.create_task(event.wait()) for event in (self._lost, self._failed)}
        self._watch = {*self._gone, asyncio.create_task(place.stopping.wait())}  # what interrupts every wait
        self._code = LOST

    async def run(self) -> None:
        """Serve until the session has ended. The connection has been accepted."""
        self._send("session.created", session=self._shown())
        try:
            await self._until_end()
        except _Gone:
            pass
        except asyncio.CancelledError:  # the server's grace period is over
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
        counted = "1 item" if n_items == 1 else f"{n_items} items"
        ended = ("live session: %.2f s of audio, %s, closed with %d", seconds, counted, self._code)
        log.info(*ended, extra={"fields": fields})

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
        self._check()  # a busy client always has a message ready
        idle_at = self._loop.time() + self._settings.live_idle_s
        message = await self._interruptible(self._websocket.receive(), until=idle_at)
        if message is None:
            raise _End(NORMAL, "The session was idle.")
        if message["type"] == "websocket.disconnect":
            self._code = int(message.get("code") or GOING_AWAY)
            raise _Gone
        return message

    async def _interruptible(self, wanted: Awaitable[T], until: float = math.inf) -> T | None:
        """The result, or None if it isn't there by then. Raises _Gone, _End if those come first."""
        task = asyncio.ensure_future(wanted)
        timeout = max(0.0, min(until, self._ends_at) - self._loop.time())
        try:
            await asyncio.wait({task, *self._watch}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self._check()
            if self._ends_at <= until:
                raise _End(NORMAL, TIME_IS_OVER)
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
        if self._loop.time() >= self._ends_at:
            raise _End(NORMAL, TIME_IS_OVER)

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
                    await self._until_room()
                case "input_audio_buffer.clear":
                    self._clear()
                case kind if kind in UPDATES:
                    await self._update(event)
                    shown_flat = kind != "session.update"
                    self._send(UPDATES[kind], session=self._shown(flat=shown_flat))
                case kind if kind in CONVERSATION:
                    raise UnsupportedValue(f"This server only transcribes: it doesn't support {kind}.", param="type")
                case kind:
                    raise InvalidValue(f"There is no event '{shown(kind)}'.", param="type")
        except WispError as error:
            self._outgoing.put(error_event(error, event_id))

    async def _update(self, event: dict[str, Any]) -> None:
        if "session" not in event:
            raise MalformedEvent("The event has no session.", param="session")
        await self._configure(self._configuration.updated(event["session"]))

    async def _begin(self) -> None:
        """Start to listen as configured so far. Raises _Fatal if that is impossible."""
        try:
            await self._configure(self._configuration)
        except WispError as error:
            raise _Fatal(error) from None

    async def _configure(self, configuration: Configuration) -> None:
        """Use this configuration from now on. Raises WispError, and then keeps the old one."""
        choice = Choice(self._service, self._rights)
        if configuration.model:
            choice.take(configuration.model)
        choice.check(configuration.options)
        await self._listen(choice, configuration)
        self._configuration = configuration
        self._decoder.set_format(configuration.format)
        self._items.has_hypotheses = HYPOTHESES in configuration.include

    async def _listen(self, choice: Choice, configuration: Configuration) -> None:
        """Make a listener for the model and the options, or update the one there is."""
        held = AsyncExitStack()
        try:
            entering = held.enter_async_context(choice.transcriber(configuration.options))
            transcriber = await self._interruptible(entering)
            assert transcriber is not None  # no `until`
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
            await self._until_room()

    async def _hear(self, samples: "np.ndarray[Any, np.dtype[np.float32]]") -> None:
        assert self._listener is not None
        self._n_samples += len(samples)
        has_vad = self._listener.cutting is not None
        self._items.take(await self._listener.hear(samples), self._offset_s, has_vad=has_vad)

    async def _until_room(self) -> None:
        """Wait while much audio or many transcripts are pending, unless the session ends. Raises _Gone."""
        assert self._listener is not None
        while True:
            if self._lost.is_set() or self._failed.is_set():
                raise _Gone
            is_ending = self._place.stopping.is_set() or self._loop.time() >= self._ends_at
            is_full = self._listener.buffered_s > self._settings.live_buffer_s or self._items.is_full
            if is_ending or not is_full:
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
        """Wait for the pending transcripts, up to a transcription's time limit, or until the client leaves."""
        limit_s = self._settings.deadline_s(self._settings.live_buffer_s)
        leaving = asyncio.create_task(self._leaves())
        completing = asyncio.create_task(self._items.completed())
        ends = {completing, leaving, *self._gone}
        try:
            done, _ = await asyncio.wait(ends, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            completing.cancel()
            leaving.cancel()
        if not done:
            self._items.give_up(DeadlineExceeded(limit_s))

    async def _leaves(self) -> None:
        """Wait until the client has left; ignore what it sends."""
        with suppress(WebSocketDisconnect, RuntimeError):
            while (await self._websocket.receive())["type"] != "websocket.disconnect":
                pass

    async def _close(self, code: int, reason: str, seconds: float | None = None) -> None:
        """Close the connection once all events are sent, or after that many seconds; CLOSE_S by default."""
        self._code = code
        closing = asyncio.create_task(self._goodbye(code, reason))
        await asyncio.wait({closing}, timeout=CLOSE_S if seconds is None else seconds)
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
