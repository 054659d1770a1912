"""Enforces a minimum pace for request bodies, so that a client that trickles bytes can't hold resources for long."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import UploadTooSlow


class UploadPace:
    """ASGI middleware: raises UploadTooSlow in the reader once the body exceeds its time limit.

    The limit is `floor_s` seconds plus one second per `bytes_per_s` bytes received, and `idle_s` for a pause.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        floor_s: float,
        bytes_per_s: int,
        idle_s: float = 30.0,
        on_end: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`on_end`: called with a body's seconds once it is complete."""
        self.app, self.floor_s, self.bytes_per_s, self.idle_s, self.on_end = app, floor_s, bytes_per_s, idle_s, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        started: float | None = None
        n_bytes = 0
        ended = False  # from then on receive() waits for the client to leave, which may take long

        async def receive_in_time() -> Message:
            nonlocal started, n_bytes, ended
            if ended:
                return await receive()
            if started is None:
                started = loop.time()
            paced_until = started + self.floor_s + n_bytes / self.bytes_per_s
            idle_until = loop.time() + self.idle_s
            try:
                async with asyncio.timeout_at(min(paced_until, idle_until)):
                    message = await receive()
            except TimeoutError:
                ended = True
                idle_s = self.idle_s if idle_until < paced_until else None
                raise UploadTooSlow(self.floor_s, self.bytes_per_s, idle_s=idle_s) from None
            n_bytes += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                ended = True
                if n_bytes and message["type"] == "http.request":
                    self.on_end(loop.time() - started)
            return message

        await self.app(scope, receive_in_time, send)
