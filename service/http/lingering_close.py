"""A connection closed so that its last answer arrives, though the client is still sending what nobody will read.

A socket that is closed with unread bytes in it resets the connection, and a client that is reset may lose what it has
not read yet. So its answer is ended first, and what still comes is read and dropped: for a while, and only as long as
something comes. (RFC 9112, section 9.6; the times are nginx's.) A body that is not refused may be as large, so all of
a large one is read; but whoever is refused costs little: what nobody wants is read no faster than `UNREAD_PACE`, on all
connections together.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

LINGER_S = 30.0
SILENCE_S = 5.0  # of a client that is not sending after all
UNREAD_PACE = 64 * 2**20  # bytes a second: 2 GB in LINGER_S, for 6 % of a core, as measured
MOST_PAUSE_S = 5.0  # however many have sent before: who sends little after an answer is not to wait for them all


class Throttle:
    """So many bytes a second for all who share it. For one thread, the event loop's."""

    def __init__(self, bytes_per_s: float, *, most_pause_s: float = MOST_PAUSE_S) -> None:
        """`bytes_per_s`: or of whatever else is counted."""
        self.bytes_per_s, self.most_pause_s = bytes_per_s, most_pause_s
        self._free_at = 0.0

    def pause_s(self, n_bytes: float, now: float) -> float:
        """How long to wait after so many bytes, `most_pause_s` at most. `now`: seconds from some point on."""
        self._free_at = min(max(now, self._free_at) + n_bytes / self.bytes_per_s, now + self.most_pause_s)
        return self._free_at - now


class LingeringTransport:
    """A connection's transport, whose close() waits for the client's end where there is more of its to come.

    Everything else is the transport's own: abort() closes at once.
    """

    def __init__(
        self, transport: Any, is_sending: Callable[[], bool], *, seconds: float = LINGER_S, silence_s: float = SILENCE_S
    ) -> None:
        """`is_sending`: whether the client is in the middle of something that it has not been read to the end of.

        `seconds`: how long to read after close(). `silence_s`: after how long without anything to read to stop.
        """
        self._transport, self._is_sending, self.seconds, self.silence_s = transport, is_sending, seconds, silence_s
        self._end: asyncio.TimerHandle | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._is_over = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

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
        """The connection is no more, for whatever reason."""
        self._is_over = True
        for timer in (self._end, self._silence):
            if timer is not None:
                timer.cancel()
