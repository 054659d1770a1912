"""Announces the Wyoming port on the local network, so that Home Assistant discovers it: DNS-SD over multicast DNS."""

import asyncio
import ipaddress
import logging
import socket
from contextlib import suppress

log = logging.getLogger("wisp")

SERVICE = "_wyoming._tcp.local."
MAX_NAME = 50  # bytes; DNS allows 63, including "wisp-" and a number at the end
MULTICAST = ("224.0.0.251", 5353)


class Announcement:
    """Announces between start() and close(). Does nothing without `zeroconf` or without a network."""

    def __init__(self, host: str, port: int) -> None:
        """`host`: the address the server listens on, which may mean all."""
        self._host, self._port = host, port
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background, because other machines are first asked whether the name is free."""
        self._task = asyncio.create_task(self._announce())

    async def close(self) -> None:
        """Withdraw the announcement. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _announce(self) -> None:
        try:
            from zeroconf import Error
            from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
        except ImportError:
            log.info("the Wyoming port isn't announced to Home Assistant: zeroconf is not installed")
            return
        try:
            name = f"wisp-{socket.gethostname().partition('.')[0][:MAX_NAME]}"
            addresses = [await self._address()]
            service = AsyncServiceInfo(SERVICE, f"{name}.{SERVICE}", port=self._port, addresses=addresses)
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
            log.info("the Wyoming port isn't announced to Home Assistant: %s", error)

    async def _address(self) -> bytes:
        """An address at which other machines reach this one."""
        loop = asyncio.get_running_loop()
        (*_, found), *_ = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        address = ipaddress.ip_address(str(found[0]).partition("%")[0])
        if not address.is_unspecified:
            return address.packed
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect(MULTICAST)  # sends nothing: the system chooses the address
            return ipaddress.ip_address(way.getsockname()[0]).packed
