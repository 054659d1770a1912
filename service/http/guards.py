"""Defences against attacks on a connection that no setting of uvicorn covers.

- **Sending on after the answer**, so that closing resets the connection and the answer is lost, or so that megabytes
  are read for nobody: `GuardedTransport` finishes the answer, then reads and drops the rest for a limited time (RFC
  9112, section 9.6; nginx's times), and `Throttle` limits its rate, over all connections together.
- **Never reading the answer**, which would then stay in memory: `GuardedTransport` aborts.
- **Sending a body in chunks of a byte**, each of which costs a parse: `PacedConnection` limits the events per turn.
- **Smuggling a request** with both Content-Length and Transfer-Encoding (RFC 9112, section 6.1): `PacedConnection`
  rejects it.

Slow headers are in protocol.py, slow bodies in upload_pace.py, too many connections in connections.py.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import h11

LINGER_S = 30.0
SILENCE_S = 5.0  # without a byte, after which the client is taken to have stopped sending
UNREAD_PACE = 64 * 2**20  # bytes a second: 2 GB in LINGER_S, for 6 % of a core, as measured
MOST_PAUSE_S = 5.0  # whatever other clients have sent: one that sends little after an answer must not wait for them
READER_PATIENCE_S = 30.0

EVENTS_A_TURN = 64  # 25 µs each: one connection keeps the event loop from the others for 2 ms
EVENT_PACE = 5000  # extra events a second, over all connections: an eighth of the event loop's time
MOST_EVENT_PAUSE_S = 60.0
FREE_BYTES = 2048  # an event of this size costs no more than the work on its bytes
FREE_EVENTS = 2.0  # per turn: a request and its end, or a piece of a body that came in small packets
BOTH_LENGTHS = "A request has either Content-Length or Transfer-Encoding, not both."


class Throttle:
    """Limits a rate over all its users. For one thread, the event loop's."""

    def __init__(self, bytes_per_s: float, *, most_pause_s: float = MOST_PAUSE_S) -> None:
        """`bytes_per_s`: or events, or whatever else is counted."""
        self.bytes_per_s, self.most_pause_s = bytes_per_s, most_pause_s
        self._free_at = 0.0

    def pause_s(self, n_bytes: float, now: float) -> float:
        """How long to pause after `n_bytes`, at most `most_pause_s`. `now`: in seconds, by any clock."""
        self._free_at = min(max(now, self._free_at) + n_bytes / self.bytes_per_s, now + self.most_pause_s)
        return self._free_at - now


class Timer:
    """One pending call of the event loop, at most."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether a call is pending."""
        return self._handle is not None

    def set(self, seconds: float, call: Callable[[], object]) -> None:
        """Replace the pending call, if any, by this one."""

        def ring() -> None:
            self._handle = None
            call()

        self.cancel()
        self._handle = asyncio.get_running_loop().call_later(seconds, ring)

    def cancel(self) -> None:
        """Drop the pending call. Idempotent."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class GuardedTransport:
    """A transport whose close() waits for a client that is still sending, and which aborts if a client stops reading.

    Reading any of the answer within `reader_patience_s` (at most twice that) is enough, so slow readers are served.
    Everything else is the transport's own; abort() closes at once.
    """

    def __init__(
        self,
        transport: Any,
        is_sending: Callable[[], bool],
        *,
        linger_s: float = LINGER_S,
        silence_s: float = SILENCE_S,
        reader_patience_s: float = READER_PATIENCE_S,
    ) -> None:
        """`is_sending`: whether the client is in the middle of a message.

        `linger_s`: how long to read after close(); `silence_s`: how long without a byte.
        """
        self._transport, self._is_sending = transport, is_sending
        self.linger_s, self.silence_s, self.reader_patience_s = linger_s, silence_s, reader_patience_s
        self._end, self._silence, self._looking = Timer(), Timer(), Timer()
        self._n_written = 0  # bytes
        self._n_sent = 0  # of them, at the latest check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it as fast as the client reads."""
        self._transport.write(data)
        self._n_written += len(data)
        if not self._looking.is_set:
            self._watch()

    def _watch(self) -> None:
        if waiting := self._transport.get_write_buffer_size():
            self._n_sent = self._n_written - waiting
            self._looking.set(self.reader_patience_s, self._look)

    def _look(self) -> None:
        waiting = self._transport.get_write_buffer_size()
        if waiting and self._n_written - waiting == self._n_sent:
            self._transport.abort()
        else:
            self._watch()

    @property
    def lingers(self) -> bool:
        """Whether incoming bytes are read only to be dropped."""
        return self._end.is_set

    def is_closing(self) -> bool:
        """True from close() on: nothing more may be written."""
        return self.lingers or bool(self._transport.is_closing())

    def close(self) -> None:
        """Finish the answer; close once the client has stopped sending or its time is over. Idempotent."""
        if self.lingers:
            return
        if self._transport.is_closing() or not self._is_sending():
            self._transport.close()
            return
        self._end.set(self.linger_s, self._transport.abort)
        with contextlib.suppress(OSError):  # the client is gone, as reading will show
            if self._transport.can_write_eof():
                self._transport.write_eof()
        self.go_on()

    def rest(self) -> None:
        """Stop reading until go_on(): the client has sent something after close()."""
        self._silence.cancel()
        self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        self._silence.set(self.silence_s, self._transport.abort)
        self._transport.resume_reading()

    def lost(self) -> None:
        """The connection has ended."""
        for timer in (self._end, self._silence, self._looking):
            timer.cancel()


class PacedConnection(h11.Connection):
    """Gives as many events as allow() permits, then asks for more data; `is_behind` if it already has some."""

    n_left, n_extra, is_behind = 0, 0.0, False  # n_extra: events given that their bytes do not account for
    method = b""  # of the latest request
    refusal = ""  # why the connection cannot go on

    def allow(self, n_events: int) -> None:
        """Permit that many events."""
        self.n_left, self.n_extra, self.is_behind = n_events, -FREE_EVENTS, False

    def next_event(self) -> Any:
        """h11's, within the allowance."""
        if self.refusal:
            raise h11.RemoteProtocolError(self.refusal)
        if not self.n_left:
            self.is_behind = True
            return h11.NEED_DATA
        event = super().next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return event
        self.n_left -= 1
        self.n_extra += 1.0 if not isinstance(event, h11.Data) else 1.0 - len(event.data) / FREE_BYTES
        if isinstance(event, h11.Request):
            self.method = event.method
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                self.refusal = BOTH_LENGTHS
                raise h11.RemoteProtocolError(self.refusal)
        return event
