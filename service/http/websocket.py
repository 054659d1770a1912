"""uvicorn's WebSocket connections, with this server's limits. When the server stops, sessions close them.

Problems that uvicorn leaves open, and the answers:

- **A client leaves while nothing is read from it**, because its audio is pending: each connection is checked every
  `LOOK_S`, and `LOST_IN_SCOPE` notifies the session.
- **A client can't answer a ping**, because nothing is read from it or a large message is being received: it isn't taken
  for lost.
- **Many large messages at once**: only `LARGE_AT_ONCE` connections are read beyond `SMALL_BYTES` of an unfinished
  message at the same time, and each has `LARGE_S`. The others wait in their sockets, and a client that has no large
  message in progress goes first.
- **A flood of tiny frames**: `FRAMES_A_TURN` are parsed per turn of the event loop, and `FRAME_PACE` per second.
- **A handshake that only the WebSocket parser rejects**: answered with an error in OpenAI's envelope.
"""

import asyncio
import json
import math
import select
from collections import deque
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.http11 import Response

from service.errors import InternalError, RequestError, WispError
from service.http.clients import client_of
from service.http.guards import MOST_EVENT_PAUSE_S, Throttle

LOST_IN_SCOPE = "wisp.lost"  # an asyncio.Event, set once the connection is lost
LOOK_S = 1.0
LEFT = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
SMALL_BYTES = 512 * 1024  # of an unfinished message
LARGE_AT_ONCE = 4
LARGE_S = 60.0
INVALID_DATA, TRY_AGAIN_LATER = 1007, 1013  # close codes
PIECE_BYTES = 4096  # parsed together: at most 682 frames, which take 10 ms
FRAMES_A_TURN = 64
FRAME_PACE = 5000  # frames per second beyond those, of all connections together


class LargeMessages:
    """The connections that may receive a large message now, and those that wait. For the event loop's thread."""

    def __init__(self, n_at_once: int = LARGE_AT_ONCE) -> None:
        self.n_at_once = n_at_once
        self._receiving: set[WebSocket] = set()
        self._waiting: deque[WebSocket] = deque()

    def may(self, connection: "WebSocket") -> bool:
        """Whether the connection may continue; if not, its `go_on()` is called later."""
        if connection in self._receiving:
            return True
        if len(self._receiving) < self.n_at_once:
            self._receiving.add(connection)
            connection.large_began()
            return True
        if connection not in self._waiting:
            self._waiting.append(connection)
        return False

    def done(self, connection: "WebSocket") -> None:
        """Its message is complete, or the connection is lost. Idempotent."""
        if connection in self._waiting:
            self._waiting.remove(connection)
        if connection in self._receiving:
            self._receiving.discard(connection)
            if self._waiting:
                following = self._following()
                self._waiting.remove(following)
                self.may(following)
                following.go_on()

    def _following(self) -> "WebSocket":
        """The longest waiting one of a client that has no large message in progress; else the longest waiting."""
        clients = {connection.client_name for connection in self._receiving}
        others = (waiting for waiting in self._waiting if waiting.client_name not in clients)
        return next(others, self._waiting[0])


class WebSocket(WebSocketsSansIOProtocol):
    """One connection. Its transport is a GuardedTransport (guards.py)."""

    large_messages = LargeMessages()
    large_s = LARGE_S
    throttle = Throttle(FRAME_PACE, most_pause_s=MOST_EVENT_PAUSE_S)
    _n_frames = 0  # parsed in this turn
    _behind: asyncio.TimerHandle | None = None  # resumes parsing
    _n_partial = 0  # bytes of the unfinished message, roughly
    _n_bytes = 0  # received
    _n_bytes_at_ping = 0
    _is_held = False  # whether reading waits for other connections' large messages
    _large: asyncio.TimerHandle | None = None
    _looking: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.lost = asyncio.Event()
        self._unparsed = bytearray()
        self.conn.reject = _rejection  # type: ignore[method-assign]
        self.conn.debug = False  # it would log keys and frames

    @property
    def client_name(self) -> str:
        """The sender, as NamedClient knows it."""
        return client_of(cast(Any, self.scope))

    def lateness(self, now: float) -> float:
        """Never closed to make room: a session has its own limits. See service.http.connections.Connection."""
        return -math.inf

    def dismiss(self) -> None:
        """Close the connection immediately."""
        self.transport.abort()

    def shutdown(self) -> None:
        """The server stops. An open session sends its last words and closes; a closing connection closes now."""
        if self.close_sent:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        self._n_bytes += len(data)
        self._unparsed += data
        if self._behind is None:
            self._parse()

    def _parse(self) -> None:
        """Parse this turn's frames; leave the rest, and further data, for later."""
        self._n_frames = 0
        while self._unparsed and self._n_frames <= FRAMES_A_TURN and not self.transport.is_closing():
            size = PIECE_BYTES if self.handshake_initiated else len(self._unparsed)
            piece = bytes(self._unparsed[:size])
            del self._unparsed[:size]
            self._n_partial += len(piece)
            super().data_received(piece)
            if not self.handshake_initiated:
                self._refuse_handshake()
        if self.transport.is_closing():
            return
        if self._n_frames > FRAMES_A_TURN:
            self.transport.pause_reading()
            pause_s = self.throttle.pause_s(self._n_frames - FRAMES_A_TURN, self.loop.time())
            self._behind = self.loop.call_later(pause_s, self._catch_up)
        if self._n_partial > SMALL_BYTES and not self.close_sent and not self.large_messages.may(self):
            self._is_held = True
            self.transport.pause_reading()

    def _catch_up(self) -> None:
        self._behind = None
        self._parse()
        self._read_on()

    def _read_on(self) -> None:
        """Resume reading, unless something else still pauses it."""
        is_waiting = self.read_paused or self._is_held or self._behind is not None
        if not is_waiting and not self.transport.is_closing():
            self.transport.resume_reading()

    def _refuse_handshake(self) -> None:
        answer = b"".join(self.conn.data_to_send())
        self.transport.write(answer or _rejection(400, "The WebSocket handshake is malformed.").serialize())
        self.close_sent = self.handshake_complete = True
        self.transport.close()

    def handle_ping(self) -> None:
        self._n_frames += 1
        if not self.transport.is_closing():
            super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        self._n_frames += 1
        super().handle_pong(event)

    def handle_cont(self, event: Any) -> None:
        self._n_frames += 1
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Replaces uvicorn's, which would log text that isn't UTF-8 with a traceback."""
        self._n_frames += 1
        self._n_partial = 0
        self._large_ended()
        data, self.frames = b"".join(self.frames), []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "bytes":
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        else:
            try:
                self.queue.put_nowait({"type": "websocket.receive", "text": data.decode()})
            except UnicodeDecodeError:
                self.conn.fail(INVALID_DATA, "the message isn't UTF-8")
                self.handle_parser_exception()
                return
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # refused; otherwise uvicorn logs an error

    async def receive(self) -> Any:
        message = await super().receive()
        if self._is_held or self._behind is not None:
            self.transport.pause_reading()
        return message

    def large_began(self) -> None:
        """Start the time limit of a large message."""
        self._large = self.loop.call_later(self.large_s, self._is_too_slow)

    def go_on(self) -> None:
        """Resume reading: another connection's large message is complete."""
        self._is_held = False
        self._read_on()

    def _large_ended(self) -> None:
        if self._large is not None:
            self._large.cancel()
            self._large = None
        self._is_held = False
        self.large_messages.done(self)

    def _is_too_slow(self) -> None:
        self._large = None
        if not self.transport.is_closing():
            self.conn.fail(TRY_AGAIN_LATER, "a message took too long")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.transport.close()

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            cast(dict[str, Any], self.scope)[LOST_IN_SCOPE] = self.lost
            self._looking = self.loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Abort the connection if the client has left while nothing is read from it."""
        self._looking = self.loop.call_later(LOOK_S, self._look)
        if not self.transport.is_closing() and not self.transport.is_reading():
            poll = select.poll()
            poll.register(self.transport.get_extra_info("socket"), LEFT)
            if poll.poll(0):
                self.transport.abort()

    def send_keepalive_ping(self) -> None:
        self._n_bytes_at_ping = self._n_bytes
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if (self.read_paused or self._is_held or self._n_bytes > self._n_bytes_at_ping) and not self.close_sent:
            self.stop_keepalive()
            self.send_keepalive_ping()  # also detects a lost connection
            return
        super().keepalive_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        cast(Any, self.transport).lost()
        for timer in (self._behind, self._looking):
            if timer is not None:
                timer.cancel()
        self._large_ended()
        super().connection_lost(exc)
        self.lost.set()


def _rejection(status: int, text: str) -> Response:
    """The answer to a refused handshake."""
    error: WispError = RequestError(text.partition("\n")[0]) if status < 500 else InternalError()
    body = json.dumps(error.envelope()).encode()
    headers = Headers()
    headers["Content-Type"], headers["Content-Length"] = "application/json", str(len(body))
    headers["X-Content-Type-Options"], headers["Connection"] = "nosniff", "close"
    return Response(int(status), HTTPStatus(status).phrase, headers, body)
