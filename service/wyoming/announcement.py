"""Announces the Wyoming port in the local network, so that Home Assistant offers it: DNS-SD over multicast DNS."""

import asyncio
import ipaddress
import logging
import socket
from contextlib import suppress

log = logging.getLogger("wisp")

SERVICE = "_wyoming._tcp.local."
MAX_NAME = 50  # bytes; with "wisp-" and a number after it, DNS allows 63
MULTICAST = ("224.0.0.251", 5353)


class Announcement:
    """Lasts from start() to close(). Does nothing where `zeroconf` is not installed or there is no network."""

    def __init__(self, host: str, port: int) -> None:
        """`host`: the address that is listened on, which may mean all."""
        self._host, self._port = host, port
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the background: the name is asked for first."""
        self._task = asyncio.create_task(self._announce())

    async def close(self) -> None:
        """Take it back. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _announce(self) -> None:
        try:
            from zeroconf import Error
            from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
        except ImportError:
            log.info("Home Assistant isn't told of the Wyoming port: zeroconf is not installed")
            return
        try:
            name = f"wisp-{socket.gethostname().partition('.')[0][:MAX_NAME]}"
            service = AsyncServiceInfo(SERVICE, f"{name}.{SERVICE}", port=self._port, addresses=[self._address()])
            multicast = AsyncZeroconf()
            try:
                await multicast.async_register_service(service, allow_name_change=True)
                log.debug("announced %s", service.name)
                await asyncio.Event().wait()
            finally:
                with suppress(OSError, Error):
                    await multicast.async_unregister_all_services()
                await multicast.async_close()
        except (OSError, Error) as error:
            log.info("Home Assistant isn't told of the Wyoming port: %s", error)

    def _address(self) -> bytes:
        """One at which others reach this machine."""
        address = ipaddress.ip_address(socket.gethostbyname(self._host) if not _is_address(self._host) else self._host)
        if not address.is_unspecified:
            return address.packed
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect(MULTICAST)  # sends nothing: the system chooses the address
            return ipaddress.ip_address(way.getsockname()[0]).packed


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
