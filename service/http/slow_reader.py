"""Aborts a response that its client does not read: it, and everything waiting for it, would be held forever."""

import asyncio
from typing import Any

READER_PATIENCE_S = 30.0


class WatchedTransport:
    """A connection's transport; aborts if none of the waiting data has been sent for `patience_s` to twice that.

    A slow reader may take as long as it needs. Everything else is delegated to the transport.
    """

    def __init__(self, transport: Any, *, patience_s: float = READER_PATIENCE_S) -> None:
        self._transport, self.patience_s = transport, patience_s
        self._n_written = 0  # bytes
        self._n_sent = 0  # of these, at the last check
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
        """The connection has closed."""
        if self._looking is not None:
            self._looking.cancel()
