"""The port's announcement by multicast DNS: its content, and its withdrawal."""

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from service.http.app import create_app, listen
from service.wyoming.announcement import MULTICAST, SERVICE, Announcement
from service.wyoming.server import WyomingServer
from tests.support.serving import engine_for, settings_for

zeroconf = pytest.importorskip("zeroconf.asyncio")


class FakeZeroconf:
    """Multicast that stays in this test."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails, self.told, self.is_closed = fails, list[Any](), False

    async def async_register_service(self, service: Any, *, allow_name_change: bool) -> None:
        assert allow_name_change
        if self.fails:
            raise self.fails
        self.told.append(service)

    async def async_unregister_all_services(self) -> None:
        self.told.clear()

    async def async_close(self) -> None:
        self.is_closed = True


@pytest.fixture
def multicast(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeZeroconf]:
    fake = FakeZeroconf()
    monkeypatch.setattr(zeroconf, "AsyncZeroconf", lambda: fake)
    yield fake
    assert fake.told == []


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
def test_it_is_told_while_it_lasts(multicast: FakeZeroconf, host: str) -> None:
    async def work() -> None:
        announcement = Announcement(host, 10300)
        announcement.start()
        await asyncio.sleep(0.1)
        (service,) = multicast.told
        assert service.type == SERVICE and service.name.startswith("wisp-") and service.port == 10300
        assert service.parsed_addresses() == [host]
        await announcement.close()
        await announcement.close()
        assert multicast.is_closed and multicast.told == []

    asyncio.run(work())


def test_all_addresses_are_announced_as_one_that_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    class Way:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> "Way":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def connect(self, address: tuple[str, int]) -> None:
            assert address == MULTICAST

        def getsockname(self) -> tuple[str, int]:
            return ("192.0.2.9", 40_000)

    async def work() -> bytes:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", Way)
            return await Announcement("0.0.0.0", 10300)._address()

    assert asyncio.run(work()) == socket.inet_aton("192.0.2.9")


def test_a_host_name_is_resolved_outside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, threads = socket.getaddrinfo, list[threading.Thread]()

    def watched(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return resolve(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    found = asyncio.run(Announcement("localhost", 10300)._address())
    assert found in (socket.inet_pton(socket.AF_INET, "127.0.0.1"), socket.inet_pton(socket.AF_INET6, "::1"))
    assert threads and threading.main_thread() not in threads


def test_a_long_host_name_fits(multicast: FakeZeroconf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "x" * 64 + ".example")

    async def work() -> None:
        announcement = Announcement("192.0.2.7", 10300)
        announcement.start()
        await asyncio.sleep(0.1)
        assert len(multicast.told) == 1
        await announcement.close()

    asyncio.run(work())


@pytest.mark.parametrize("fails", [OSError("no network"), None])
def test_it_may_fail(
    fails: Exception | None, multicast: FakeZeroconf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a network, or without the library, the server serves all the same."""
    caplog.set_level("INFO")
    multicast.fails = fails
    if fails is None:
        monkeypatch.setitem(sys.modules, "zeroconf", None)

    async def work() -> None:
        announcement = Announcement("192.0.2.7", 10300)
        announcement.start()
        await asyncio.sleep(0.1)
        await announcement.close()

    asyncio.run(work())
    assert (
        "the Wyoming port isn't announced to Home Assistant: " + ("no network" if fails else "zeroconf") in caplog.text
    )


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [({}, False), ({"host": "0.0.0.0"}, True), ({"host": "0.0.0.0", "wyoming_published": "10300"}, False)],
)
def test_only_what_others_can_reach_is_announced(
    folder: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], is_told: bool
) -> None:
    started: list[Announcement] = []
    monkeypatch.setattr(Announcement, "start", lambda announcement: started.append(announcement))

    async def work() -> None:
        with engine_for(settings_for(folder, **changes)) as engine:
            server = WyomingServer(create_app(engine).state.service, listen("127.0.0.1", 0))
            await server.open(set())
            await server.close()

    asyncio.run(work())
    assert bool(started) is is_told
