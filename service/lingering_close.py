"""A connection closed so that its last answer arrives, though the client is still sending what nobody will read.

A socket that is closed with unread bytes in it resets the connection, and a client that is reset may lose what it has
not read yet. So its answer is ended first, and what still comes is read and dropped: for a while, and only as long as
something comes. (RFC 9112, section 9.6; the times are nginx's.) How much that is does not matter: a body that is not
refused may be as large.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

LINGER_S = 30.0
SILENCE_S = 5.0  # of a client that is not sending after all


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
        """Whether what comes is to go to drop()."""
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

    def drop(self) -> None:
        """Something has come after close()."""
        self._expect_more()

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
