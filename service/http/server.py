"""The HTTP server and its shutdown: running requests get some time, then an error, and nothing outlives it."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from types import FrameType
from typing import Any, Protocol

import uvicorn

from service.http.connections import THINNED_WITHOUT_FILES, AcceptErrors, thin
from service.http.jobs import Job
from service.http.protocol import KEEP_ALIVE_S, MOST_CONNECTIONS, Config, ImpatientProtocol
from service.http.websocket import WebSocket

log = logging.getLogger("wisp")

ANSWER_S = 1.0  # time for cancelled requests to send that error
TICK_S = 0.05
BACKLOG = 2048  # connections the kernel holds until they are accepted
ACCEPTED_AT_ONCE = 32  # per loop turn; asyncio's default is the backlog's size
MESSAGE_BYTES = 1024 * 1024  # of a WebSocket
PING_S = 20.0  # between two pings, and for the answer to one


class Door(Protocol):
    """A port with another protocol."""

    async def open(self, tasks: "set[asyncio.Task[Any]]") -> None:
        """Begin to accept connections, each of which has a task among these while it lasts."""

    async def close(self) -> None:
        """Accept no more. Idempotent."""


class Server(uvicorn.Server):
    """uvicorn's server around the application. A second SIGINT or SIGTERM ends the wait for running requests."""

    def __init__(
        self,
        app: Any,
        under_way: Iterable[Job],
        *,
        grace_s: float,
        on_stop: Callable[[], None] = lambda: None,
        end_sessions: Callable[[], None] = lambda: None,
        doors: Sequence[Door] = (),
        most_connections: int = MOST_CONNECTIONS,
        message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        """`app`: an ASGI application; `under_way`: the jobs still running when `grace_s` seconds are over.

        `on_stop`: called as soon as the server starts to stop. `end_sessions`: called in the event loop then, so that
        WebSocket sessions end by themselves. `most_connections`: beyond it, the longest idle ones are closed.
        `doors`: other ports, open while this server is. `message_bytes`: the largest message of a WebSocket.
        """
        config = Config(
            app,
            http=ImpatientProtocol,
            ws=WebSocket,
            ws_max_size=message_bytes,
            ws_per_message_deflate=False,  # audio in base64 gains little for much time and memory
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            timeout_keep_alive=KEEP_ALIVE_S,
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=ACCEPTED_AT_ONCE,
        )
        config.most_connections = most_connections
        # The last resort, for a task that ignores cancellation; everything else has ended by then.
        config.timeout_graceful_shutdown = int(grace_s + 3 * ANSWER_S)
        super().__init__(config)
        self.under_way, self.grace_s = under_way, grace_s
        self.on_stop, self.end_sessions, self.doors = on_stop, end_sessions, doors
        self.hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal's handler. Later signals are not kept to be raised again: the exit code needs only one."""
        if self.should_exit:
            self.hurried = True
        else:
            self.on_stop()
            super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's SIGINT and SIGTERM, and SIGHUP: a closed terminal stops the server like SIGTERM.

        If SIGHUP is ignored, as under nohup, it stays ignored.
        """
        with super().capture_signals():
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = signal.getsignal(signal.SIGHUP)
            if before is not signal.SIG_IGN:
                signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's startup, with an accept loop that survives a lack of open files."""
        loop = asyncio.get_running_loop()

        def make_room() -> None:
            thin(self.server_state.connections, loop.time(), THINNED_WITHOUT_FILES)

        loop.set_exception_handler(AcceptErrors(make_room))
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)
        for door in self.doors:
            await door.open(self.server_state.tasks)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, let requests finish or cancel them, close the application."""
        if self.server_state.tasks:
            log.info(
                "stopping: %s may take %g s more; a second Ctrl-C stops immediately", self._counted(), self.grace_s
            )
        self.end_sessions()
        for door in self.doors:
            await door.close()
        ending = asyncio.create_task(self._end_requests())
        await super().shutdown(sockets)
        await ending
        log.info("stopped")

    def _counted(self) -> str:
        count = len(self.server_state.tasks)
        return "1 request" if count == 1 else f"{count} requests"

    async def _end_requests(self) -> None:
        if await self._all_answered(self.grace_s, may_hurry=True):
            return
        log.warning("stopping: cancelled %s", self._counted())
        for job in list(self.under_way):
            job.give_up()
        if not await self._all_answered(ANSWER_S):
            # Running uploads, files being decoded, and responses that their clients do not read.
            for task in list(self.server_state.tasks):
                task.cancel()
            await self._all_answered(ANSWER_S)

    async def _all_answered(self, seconds: float, may_hurry: bool = False) -> bool:
        end = time.monotonic() + seconds
        while self.server_state.tasks and time.monotonic() < end and not (may_hurry and self.hurried):
            await asyncio.sleep(TICK_S)
        return not self.server_state.tasks
