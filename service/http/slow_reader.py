"""A client that does not read its answer is given up: the answer, and what waits for it, would be held for good."""

import asyncio
from typing import Any

READER_PATIENCE_S = 30.0


class WatchedTransport:
    """A connection's transport, aborted where nothing of what waits to be sent has gone for `patience_s` to twice that.

    A client that reads slowly has all the time it takes. Everything else is the transport's own.
    """

    def __init__(self, transport: Any, *, patience_s: float = READER_PATIENCE_S) -> None:
        self._transport, self.patience_s = transport, patience_s
        self._n_written = 0  # bytes
        self._n_sent = 0  # of them, when that was last looked at
        self._looking: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it as soon as the client reads."""
        self._transport.write(data)
        self._n_written += len(data)
        if self._looking is None:
            self._watch()

    def _watch(self) -> None:
        waiting = self._transport.get_write_buffer_size()
        if waiting:
            self._n_sent = self._n_written - waiting
            self._looking = asyncio.get_running_loop().call_later(self.patience_s, self._look)

    def _look(self) -> None:
        self._looking = None
        waiting = self._transport.get_write_buffer_size()
        if waiting and self._n_written - waiting == self._n_sent:
            self._transport.abort()
        else:
            self._watch()

    def lost(self) -> None:
        """The connection is no more."""
        if self._looking is not None:
            self._looking.cancel()
