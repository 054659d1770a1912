"""uvicorn's HTTP/1.1, with a limit to what it waits for without one: headers, a body nobody reads, a reader.

A connection between two requests is kept longer than that, and longer than clients and proxies keep theirs: the side
that closes first must be the one that sends next, else a request may meet the other's close on its way.
"""

import asyncio
import json
import math
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import RequestError
from service.http.connections import thin
from service.http.guards import (
    EVENT_PACE,
    EVENTS_A_TURN,
    LINGER_S,
    MOST_EVENT_PAUSE_S,
    READER_PATIENCE_S,
    SILENCE_S,
    UNREAD_PACE,
    GuardedTransport,
    PacedConnection,
    Throttle,
)

PATIENCE_S = 30.0
KEEP_ALIVE_S = 75  # httpx keeps a connection for 5 s, nginx as a proxy and AWS's load balancer for 60
LAST_LINGER_S = 1.0  # for a server that stops
MOST_CONNECTIONS = 2048
LATE_PACE = 64 * 1024  # bytes a second, for which a body under way is not late


class Config(uvicorn.Config):
    """uvicorn's, with the most connections there may be."""

    most_connections = MOST_CONNECTIONS


class ImpatientProtocol(H11Protocol):
    """Closes a connection on which nothing goes on but the client's slowness, for `PATIENCE_S`.

    So are ended: one whose headers have not come whole, and one that goes on sending a body after the answer to it.
    A body that is read has a pace of its own to keep: upload_pace.py. Where the answer ends the connection, a body that
    still comes has `linger_s`, and an answer that is not read has `reader_patience_s`: guards.py. Where there are too
    many connections, the ones that the server has waited for longest are closed: connections.py.
    """

    conn: PacedConnection
    _closing: asyncio.TimerHandle | None = None
    _resting: asyncio.TimerHandle | None = None
    _guarded: GuardedTransport
    patience_s = PATIENCE_S
    linger_s, silence_s, reader_patience_s = LINGER_S, SILENCE_S, READER_PATIENCE_S
    events_a_turn = EVENTS_A_TURN
    throttle = Throttle(UNREAD_PACE)
    event_throttle = Throttle(EVENT_PACE, most_pause_s=MOST_EVENT_PAUSE_S)
    _behind: asyncio.TimerHandle | None = None
    _n_bytes = 0  # received since
    _since = 0.0  # the server waits for a request
    _is_upgraded = False  # to a WebSocket, which has its own protocol from then on: websocket.py

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = PacedConnection(h11.SERVER)

    def connection_made(self, transport: Any) -> None:
        self._since = self.loop.time()
        self._guarded = GuardedTransport(
            transport,
            self._is_sending,
            seconds=self.linger_s,
            silence_s=self.silence_s,
            reader_patience_s=self.reader_patience_s,
        )
        super().connection_made(cast(asyncio.Transport, self._guarded))
        self._watch()
        if len(self.connections) > getattr(self.config, "most_connections", math.inf):
            thin(self.connections, self._since)
            if len(self.connections) > self.config.most_connections:  # type: ignore[attr-defined]
                self.dismiss()

    def data_received(self, data: bytes) -> None:
        self._n_bytes += len(data)
        if self._guarded.lingers:
            self._rest(len(data))
            return
        if self._behind is not None:  # reading has been resumed for the application, which wants the body
            self.transport.pause_reading()
            self.conn.receive_data(data)
            return
        is_unread = self._is_unread()
        super().data_received(data)
        if self._is_upgraded:
            return
        if is_unread:
            self._rest(len(data))
            self._keep_alive()
        self._watch()

    def handle_events(self) -> None:
        """As many as one turn of the event loop is for; the rest, and more data, when their time has come."""
        if self._behind is not None:
            return
        self.conn.allow(self.events_a_turn)
        super().handle_events()
        if self._is_upgraded:
            return
        is_over = self.conn.n_extra > 0 or self.conn.is_behind
        if is_over and not self.transport.is_closing():
            self.transport.pause_reading()
            pause_s = self.event_throttle.pause_s(max(0.0, self.conn.n_extra), self.loop.time())
            self._behind = self.loop.call_later(pause_s, self._catch_up)

    def _catch_up(self) -> None:
        self._behind = None
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
        self._trust()
        for timer in (self._resting, self._behind):
            if timer is not None:
                timer.cancel()
        super().handle_websocket_upgrade(event)

    def lateness(self, now: float) -> float:
        """See service.http.connections.Connection."""
        is_waited_for = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) or self._guarded.lingers
        return now - self._since - self._n_bytes / LATE_PACE if is_waited_for else -math.inf

    def dismiss(self) -> None:
        """Close the connection: others need its file."""
        self.connections.discard(self)
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answers malformed HTTP with 400 in OpenAI's envelope, unless an answer has begun.

        The application that waits for the rest of such a request sees its client disconnect, and sends no more.
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
                body = b""  # h11 lets none be sent
            for event in (
                h11.Response(status_code=400, reason="Bad Request", headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def shutdown(self) -> None:
        """The server stops: a client that has its answer has had its time, another gets little for what it sends."""
        self._guarded.seconds = min(self._guarded.seconds, LAST_LINGER_S)
        if self._guarded.lingers:
            self._guarded.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._trust()
        for timer in (self._resting, self._behind):
            if timer is not None:
                timer.cancel()
        self._guarded.lost()
        super().connection_lost(exc)

    def _is_sending(self) -> bool:
        """In the middle of a body, or of what is no HTTP."""
        return not self._is_upgraded and self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _is_unread(self) -> bool:
        """Whether a body still comes that is answered already."""
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)

    def _keep_alive(self) -> None:
        """Wait for the next request where a body has ended that was answered before; uvicorn then sets no timer."""
        is_between = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if is_between and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _rest(self, n_bytes: int) -> None:
        """So many bytes have come that nobody reads: the next are taken when it is time."""
        if self._resting is not None:
            self._resting.cancel()
        if self._guarded.lingers:
            self._guarded.rest()
        else:
            self.transport.pause_reading()
        self._resting = self.loop.call_later(self.throttle.pause_s(n_bytes, self.loop.time()), self._unrest)

    def _unrest(self) -> None:
        self._resting = None
        self._go_on()

    def _go_on(self) -> None:
        """Read on, unless there is another reason not to."""
        if self._guarded.lingers:
            self._guarded.go_on()
        elif self._resting is None and self._behind is None and not self.flow.read_paused:
            self.transport.resume_reading()

    def _watch(self) -> None:
        theirs = self.conn.their_state
        is_idle = theirs is h11.IDLE or self._is_unread()
        is_kept = theirs is h11.IDLE and self.timeout_keep_alive_task is not None  # which will end it
        if not is_idle or is_kept or self._guarded.lingers:
            self._trust()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.patience_s, self.transport.abort)

    def _trust(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
