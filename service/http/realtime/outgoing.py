"""A live session's outgoing frames, in order, and whether the client reads them fast enough."""

import asyncio
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

MOST_WAITING = 256  # frames; beyond that, the client's events aren't read


class Outgoing:
    """Frames queued for one client. For the event loop's thread."""

    def __init__(self, websocket: WebSocket, on_failure: Callable[[], None]) -> None:
        """`on_failure`: called once the client can't be reached."""
        self._websocket, self._on_failure = websocket, on_failure
        self._frames: asyncio.Queue[str] = asyncio.Queue()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._task = asyncio.create_task(self._send())

    def put(self, frame: str) -> None:
        """Queue a frame."""
        self._frames.put_nowait(frame)
        if self._frames.qsize() > MOST_WAITING:
            self._has_room.clear()

    async def room(self) -> None:
        """Wait until few frames are waiting."""
        await self._has_room.wait()

    async def flushed(self) -> None:
        """Wait until all frames are sent, or can't be."""
        joining = asyncio.create_task(self._frames.join())
        await asyncio.wait({joining, self._task}, return_when=asyncio.FIRST_COMPLETED)
        joining.cancel()

    def close(self) -> None:
        """Send nothing more. Idempotent."""
        self._task.cancel()

    async def _send(self) -> None:
        try:
            while True:
                frame = await self._frames.get()
                await self._websocket.send_text(frame)
                self._frames.task_done()
                if self._frames.qsize() <= MOST_WAITING:
                    self._has_room.set()
        except (WebSocketDisconnect, RuntimeError):
            self._has_room.set()
            self._on_failure()
