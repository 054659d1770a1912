"""What clients could do to a connection that uvicorn has no setting against, and what is done about each.

- **Send on after the answer**, so that closing resets the connection and the answer is lost, or so that megabytes are
  read for nobody: `GuardedTransport` ends the answer first, reads and drops the rest for a while (RFC 9112, section
  9.6; the times are those of nginx), and `Throttle` bounds how fast, on all connections together.
- **Never read the answer**, which then stays in memory for good: `GuardedTransport` aborts.
- **Send a body in chunks of a byte**, each of which costs a parse: `PacedConnection` gives a bounded number of events
  at a time.
- **Smuggle a request** by Content-Length with Transfer-Encoding (RFC 9112, section 6.1): `PacedConnection` refuses.

Slow headers are protocol.py's, slow bodies upload_pace.py's, too many connections connections.py's.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import h11

LINGER_S = 30.0
SILENCE_S = 5.0  # of a client that is not sending after all
UNREAD_PACE = 64 * 2**20  # bytes a second: 2 GB in LINGER_S, for 6 % of a core, as measured
MOST_PAUSE_S = 5.0  # however many have sent before: who sends little after an answer is not to wait for them all
READER_PATIENCE_S = 30.0

EVENTS_A_TURN = 64  # 25 µs each: one connection keeps the event loop from the others for 2 ms
EVENT_PACE = 5000  # extra events a second, of all connections together: an eighth of the event loop's time
MOST_EVENT_PAUSE_S = 60.0
FREE_BYTES = 2048  # an event of this size costs no more than what is done with its bytes
FREE_EVENTS = 2.0  # in a turn: a request and its end, or a piece of a body that came in small packets
BOTH_LENGTHS = "A request has either Content-Length or Transfer-Encoding, not both."


class Throttle:
    """N bytes a second for all who share it. For one thread, the event loop's."""

    def __init__(self, bytes_per_s: float, *, most_pause_s: float = MOST_PAUSE_S) -> None:
        """`bytes_per_s`: or of whatever else is counted."""
        self.bytes_per_s, self.most_pause_s = bytes_per_s, most_pause_s
        self._free_at = 0.0

    def pause_s(self, n_bytes: float, now: float) -> float:
        """How long to wait after N bytes, `most_pause_s` at most. `now`: seconds from some point on."""
        self._free_at = min(max(now, self._free_at) + n_bytes / self.bytes_per_s, now + self.most_pause_s)
        return self._free_at - now


class GuardedTransport:
    """A connection's transport, whose close() waits for a client that is still sending, and which is aborted where the
    client reads nothing of what waits to be sent for `reader_patience_s` to twice that. A slow reader has its time.

    Everything else is the transport's own: abort() closes at once.
    """

    def __init__(
        self,
        transport: Any,
        is_sending: Callable[[], bool],
        *,
        seconds: float = LINGER_S,
        silence_s: float = SILENCE_S,
        reader_patience_s: float = READER_PATIENCE_S,
    ) -> None:
        """`is_sending`: whether the client is in the middle of something that it has not been read to the end of.

        `seconds`: how long to read after close(). `silence_s`: after how long without anything to read to stop.
        """
        self._transport, self._is_sending, self.seconds, self.silence_s = transport, is_sending, seconds, silence_s
        self.reader_patience_s = reader_patience_s
        self._end: asyncio.TimerHandle | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._n_written = 0  # bytes
        self._n_sent = 0  # of them, when that was last looked at
        self._is_over = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it as soon as the client reads."""
        self._transport.write(data)
        self._n_written += len(data)
        if self._looking is None:
            self._watch()

    def _watch(self) -> None:
        if waiting := self._transport.get_write_buffer_size():
            self._n_sent = self._n_written - waiting
            self._looking = asyncio.get_running_loop().call_later(self.reader_patience_s, self._look)

    def _look(self) -> None:
        self._looking = None
        waiting = self._transport.get_write_buffer_size()
        if waiting and self._n_written - waiting == self._n_sent:
            self._transport.abort()
        else:
            self._watch()

    @property
    def lingers(self) -> bool:
        """Whether what comes is read only to be dropped."""
        return self._end is not None and not self._is_over

    def is_closing(self) -> bool:
        """True from close() on: nothing more is to be written."""
        return self._end is not None or self._transport.is_closing()

    def close(self) -> None:
        """End the answer; close the connection once the client has ended too, or has had its time. Idempotent."""
        if self._end is not None:
            return
        if self._is_over or self._transport.is_closing() or not self._is_sending():
            self._transport.close()
            return
        self._end = asyncio.get_running_loop().call_later(self.seconds, self._transport.abort)
        self._expect_more()
        with contextlib.suppress(OSError):  # the client is gone, which reading will show
            if self._transport.can_write_eof():
                self._transport.write_eof()
        self._transport.resume_reading()

    def rest(self) -> None:
        """Read no more until go_on(): something has come after close()."""
        if self._silence is not None:
            self._silence.cancel()
        self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        self._expect_more()
        self._transport.resume_reading()

    def _expect_more(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._silence = asyncio.get_running_loop().call_later(self.silence_s, self._transport.abort)

    def lost(self) -> None:
        """The connection is gone, for whatever reason."""
        self._is_over = True
        for timer in (self._end, self._silence, self._looking):
            if timer is not None:
                timer.cancel()


class PacedConnection(h11.Connection):
    """Gives `allow()`ed events, then asks for more data although there may be some: `is_behind` says so."""

    n_left, n_extra, is_behind = 0, 0.0, False  # n_extra: of those given, how many their bytes do not account for
    method = b""  # of the latest request
    refusal = ""  # why the connection cannot go on

    def allow(self, n_events: int) -> None:
        """Let next_event() give this many more."""
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
