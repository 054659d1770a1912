"""uvicorn's HTTP/1.1, with a limit to what it waits for without one: a request's headers, and a body nobody reads."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE_S = 30.0


class ImpatientProtocol(H11Protocol):
    """Closes a connection on which nothing goes on but the client's slowness, for `PATIENCE_S`.

    So are ended: one whose headers have not come whole, and one that goes on sending a body after the answer to it.
    A body that is read has a pace of its own to keep: service/upload_pace.py.
    """

    _closing: asyncio.TimerHandle | None = None
    patience_s = PATIENCE_S

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._trust()
        super().connection_lost(exc)

    def _watch(self) -> None:
        theirs, ours = self.conn.their_state, self.conn.our_state
        is_idle = theirs is h11.IDLE or (theirs is h11.SEND_BODY and ours in (h11.DONE, h11.MUST_CLOSE))
        if not is_idle:
            self._trust()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.patience_s, self.transport.close)

    def _trust(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
