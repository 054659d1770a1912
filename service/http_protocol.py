"""uvicorn's HTTP/1.1, with a limit to what it waits for without one: a request's headers, and a body nobody reads.

A connection between two requests is kept longer than that, and longer than clients and proxies keep theirs: the side
that closes first must be the one that sends next, else a request may meet the other's close on its way.
"""

import asyncio
import json
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import RequestError
from service.lingering_close import LINGER_S, SILENCE_S, LingeringTransport

PATIENCE_S = 30.0
KEEP_ALIVE_S = 75  # httpx keeps a connection for 5 s, nginx as a proxy and AWS's load balancer for 60
LAST_LINGER_S = 1.0  # for a server that stops


class ImpatientProtocol(H11Protocol):
    """Closes a connection on which nothing goes on but the client's slowness, for `PATIENCE_S`.

    So are ended: one whose headers have not come whole, and one that goes on sending a body after the answer to it.
    A body that is read has a pace of its own to keep: service/upload_pace.py. Where the answer ends the connection, a
    body that still comes has `linger_s`: service/lingering_close.py.
    """

    _closing: asyncio.TimerHandle | None = None
    _lingering: LingeringTransport
    patience_s = PATIENCE_S
    linger_s, silence_s = LINGER_S, SILENCE_S

    def connection_made(self, transport: Any) -> None:
        self._lingering = LingeringTransport(
            transport, self._is_sending, seconds=self.linger_s, silence_s=self.silence_s
        )
        super().connection_made(cast(asyncio.Transport, self._lingering))
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._lingering.lingers:
            self._lingering.drop()
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in OpenAI's envelope, as everything else is."""
        body = json.dumps(RequestError(msg).envelope()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        """The server stops: a client that has its answer has had its time, another gets little for what it sends."""
        self._lingering.seconds = min(self._lingering.seconds, LAST_LINGER_S)
        if self._lingering.lingers:
            self._lingering.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._trust()
        self._lingering.lost()
        super().connection_lost(exc)

    def _is_sending(self) -> bool:
        """In the middle of a body, or of what is no HTTP."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _watch(self) -> None:
        theirs, ours = self.conn.their_state, self.conn.our_state
        is_idle = theirs is h11.IDLE or (theirs is h11.SEND_BODY and ours in (h11.DONE, h11.MUST_CLOSE))
        is_kept = theirs is h11.IDLE and self.timeout_keep_alive_task is not None  # which will end it
        if not is_idle or is_kept or self._lingering.lingers:
            self._trust()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.patience_s, self.transport.abort)

    def _trust(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
