"""The Wyoming port of `wisp serve`: checks who can reach it, accepts and closes its connections."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from service.errors import LiveSessionsFull, NotReady, StartError
from service.http.api_keys import is_loopback
from service.http.app import listen
from service.http.clients import client_of
from service.http.service import Service
from service.settings import Settings
from service.transcription.admission import current_client
from service.wyoming.announcement import Announcement
from service.wyoming.events import MAX_JSON_BYTES
from service.wyoming.session import Session, refuse

log = logging.getLogger("wisp")

REFUSED_S = 1.0  # for a refused client to read the reason
CLOSE_S = 5.0  # for a client to read the last events


def check_exposure(settings: Settings) -> None:
    """Raise StartError if other machines can reach the port, which has no keys, unless the settings allow that."""
    published = settings.wyoming_published
    host = published.rpartition(":")[0].strip("[]") if published else settings.host
    if not is_loopback(host) and settings.allow_public_without_key != "yes":
        raise StartError(
            f"The address {published or settings.host} admits other machines to the Wyoming port, whose protocol has "
            "no API keys: listen on 127.0.0.1, or set WISP_ALLOW_PUBLIC_WITHOUT_KEY=yes to let anyone who reaches "
            "the port use it."
        )


def wyoming_door(settings: Settings) -> "Callable[[Service], WyomingServer]":
    """Bind the configured port now, and return what makes its server. Raises StartError."""
    check_exposure(settings)
    listener = listen(settings.host, settings.wyoming, setting="WYOMING")
    return lambda service: WyomingServer(service, listener)


class WyomingServer:
    """Accepts connections between open() and close(). For one event loop."""

    def __init__(self, service: Service, listener: socket.socket) -> None:
        """`listener`: the bound socket, which this server owns and closes."""
        self._service, self._settings, self._listener = service, service.settings, listener
        self._server: asyncio.Server | None = None
        self._announcement: Announcement | None = None

    @property
    def port(self) -> int:
        """The listener's port."""
        return int(self._listener.getsockname()[1])

    async def open(self, tasks: "set[asyncio.Task[Any]]") -> None:
        """Begin. `tasks`: holds the task of each open connection, so that a stopping server waits for them."""

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(_serve(reader, writer, self._service))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        self._server = await asyncio.start_server(connected, sock=self._listener, limit=MAX_JSON_BYTES)
        log.info("listening for Home Assistant (Wyoming) on port %d", self.port)
        # A container's own address means nothing outside it.
        if not is_loopback(self._settings.host) and not self._settings.wyoming_published:
            self._announcement = Announcement(self._settings.host, self.port)
            self._announcement.start()

    async def close(self) -> None:
        """Accept no more connections; sessions close the open ones. Idempotent."""
        if self._server is not None:
            self._server.close()
        if self._announcement is not None:
            await self._announcement.close()
        self._listener.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, service: Service) -> None:
    current_client.set(client_of({"client": writer.get_extra_info("peername")}))
    try:
        try:
            with service.live.reserve() as place:
                await Session(reader, writer, service, place).run()
        except (LiveSessionsFull, NotReady) as error:
            await refuse(reader, writer, error, REFUSED_S)
        writer.close()
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        with suppress(RuntimeError):  # the loop is closed
            writer.transport.abort()
