"""uvicorn's HTTP/1.1 with time limits on clients that send headers slowly, send on after the answer, or don't read.

Connections stay open between requests for longer than clients and proxies keep theirs: the side that closes first must
be the one that sends next, or a request may cross the other side's close.
"""

import asyncio
import json
import math
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import RequestError
from service.http import guards
from service.http.connections import thin

PATIENCE_S = 30.0
KEEP_ALIVE_S = 75  # httpx keeps a connection for 5 s, nginx as a proxy and AWS's load balancer for 60
LAST_LINGER_S = 1.0  # when the server stops
MOST_CONNECTIONS = 2048
LATE_PACE = 64 * 1024  # bytes a second; a body at this pace is not late


class Config(uvicorn.Config):
    """uvicorn's, with a maximum of open connections."""

    most_connections = MOST_CONNECTIONS


class ImpatientProtocol(H11Protocol):
    """Closes connections that wait only for a slow client.

    After `patience_s`: incomplete headers, and a body that goes on after its answer. Bodies that are read have a pace
    to keep, see upload_pace.py. After an answer that ends the connection, a body may go on for `linger_s`; clients that
    read nothing of their answer have `reader_patience_s`, see guards.py. With too many connections, the ones that have
    kept the server waiting longest are closed, see connections.py.
    """

    conn: guards.PacedConnection
    patience_s = PATIENCE_S
    linger_s, silence_s, reader_patience_s = guards.LINGER_S, guards.SILENCE_S, guards.READER_PATIENCE_S
    events_a_turn = guards.EVENTS_A_TURN
    throttle = guards.Throttle(guards.UNREAD_PACE)
    event_throttle = guards.Throttle(guards.EVENT_PACE, most_pause_s=guards.MOST_EVENT_PAUSE_S)
    _guarded: guards.GuardedTransport
    _since = 0.0  # when the server began to wait for a request
    _n_bytes = 0  # received since
    _is_upgraded = False  # to a WebSocket, which has its own protocol from then on: websocket.py

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = guards.PacedConnection(h11.SERVER)
        self._closing = guards.Timer()  # closes the connection
        self._resting = guards.Timer()  # ends a pause after bytes that nobody reads
        self._behind = guards.Timer()  # ends a pause after too many events

    def connection_made(self, transport: Any) -> None:
        self._since = self.loop.time()
        self._guarded = guards.GuardedTransport(
            transport,
            self._is_sending,
            linger_s=self.linger_s,
            silence_s=self.silence_s,
            reader_patience_s=self.reader_patience_s,
        )
        super().connection_made(cast(asyncio.Transport, self._guarded))
        self._watch()
        most = getattr(self.config, "most_connections", math.inf)
        if len(self.connections) > most:
            thin(self.connections, self._since)
            if len(self.connections) > most:
                self.dismiss()

    def data_received(self, data: bytes) -> None:
        self._n_bytes += len(data)
        if self._guarded.lingers:
            self._rest(len(data))
        elif self._behind.is_set:  # the application wants the body and has resumed reading
            self.transport.pause_reading()
            self.conn.receive_data(data)
        else:
            is_unread = self._is_unread()
            super().data_received(data)
            if self._is_upgraded:
                return
            if is_unread:
                self._rest(len(data))
                self._keep_alive()
            self._watch()

    def handle_events(self) -> None:
        """Handles one turn's events. Leaves the rest, and further data, for later."""
        if self._behind.is_set:
            return
        self.conn.allow(self.events_a_turn)
        super().handle_events()
        if self._is_upgraded:
            return
        is_over = self.conn.n_extra > 0 or self.conn.is_behind
        if is_over and not self.transport.is_closing():
            self.transport.pause_reading()
            pause_s = self.event_throttle.pause_s(max(0.0, self.conn.n_extra), self.loop.time())
            self._behind.set(pause_s, self._catch_up)

    def _catch_up(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.is_behind:
            is_unread = self._is_unread()
            self.handle_events()
            if self._is_upgraded:
                return
            if is_unread:
                self._keep_alive()
            self._watch()
        self._go_on()

    def on_response_complete(self) -> None:
        self._since, self._n_bytes = self.loop.time(), 0
        super().on_response_complete()
        if not self._is_upgraded:
            self._watch()

    def _should_upgrade(self) -> bool:
        """Only as RFC 6455 has it: a GET without a body. Anything else is a plain request."""
        sent = dict(self.headers)
        has_body = sent.get(b"content-length", b"0").strip(b"0") or b"transfer-encoding" in sent
        return not has_body and self.scope["method"] == "GET" and super()._should_upgrade()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._is_upgraded = True
        for timer in (self._closing, self._resting, self._behind):
            timer.cancel()
        super().handle_websocket_upgrade(event)

    def lateness(self, now: float) -> float:
        """Seconds the server has waited for the client, beyond what its bytes excuse; -inf if it isn't waiting."""
        is_waited_for = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) or self._guarded.lingers
        return now - self._since - self._n_bytes / LATE_PACE if is_waited_for else -math.inf

    def dismiss(self) -> None:
        """Close the connection at once, to free its file."""
        self.connections.discard(self)
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answers malformed HTTP with 400 in OpenAI's envelope, unless an answer has begun.

        An application that waits for the rest of such a request sees its client disconnect, and sends no more.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(RequestError(self.conn.refusal or msg).envelope()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("x-content-type-options", "nosniff"),
                ("connection", "close"),
            ]
            if self.conn.our_state is h11.SEND_RESPONSE and self.conn.method == b"HEAD":
                body = b""  # h11 allows none
            response = h11.Response(status_code=400, reason="Bad Request", headers=headers)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def shutdown(self) -> None:
        """The server stops: clients that have their answer are cut off, others may send on for LAST_LINGER_S."""
        self._guarded.linger_s = min(self._guarded.linger_s, LAST_LINGER_S)
        if self._guarded.lingers:
            self._guarded.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._closing, self._resting, self._behind):
            timer.cancel()
        self._guarded.lost()
        super().connection_lost(exc)

    def _is_sending(self) -> bool:
        """Whether the client is in the middle of a body, or of something that isn't HTTP."""
        return not self._is_upgraded and self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _is_unread(self) -> bool:
        """Whether the client still sends a body that is answered already."""
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)

    def _keep_alive(self) -> None:
        """Limit the wait for the next request after a body that was answered early; uvicorn sets no timer then."""
        is_between = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if is_between and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _rest(self, n_bytes: int) -> None:
        """Pause after `n_bytes` that nobody reads."""
        if self._guarded.lingers:
            self._guarded.rest()
        else:
            self.transport.pause_reading()
        self._resting.set(self.throttle.pause_s(n_bytes, self.loop.time()), self._go_on)

    def _go_on(self) -> None:
        """Read again, unless there is another reason not to."""
        if self._guarded.lingers:
            self._guarded.go_on()
        elif not (self._resting.is_set or self._behind.is_set or self.flow.read_paused):
            self.transport.resume_reading()

    def _watch(self) -> None:
        """Start or stop the time limit of `patience_s`."""
        theirs = self.conn.their_state
        is_idle = theirs is h11.IDLE or self._is_unread()
        is_kept = theirs is h11.IDLE and self.timeout_keep_alive_task is not None  # and so has a limit
        if not is_idle or is_kept or self._guarded.lingers:
            self._closing.cancel()
        elif not self._closing.is_set:
            self._closing.set(self.patience_s, self.transport.abort)
