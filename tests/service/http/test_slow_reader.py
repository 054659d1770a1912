"""Clients that read their answers slowly have all of them, and those that do not read hold nothing for long."""

import asyncio
import threading
from typing import Any

import pytest

from service.http.guards import GuardedTransport
from service.http.protocol import ImpatientProtocol
from tests.support.sockets import connection, everything

N_BYTES = 64 * 2**20  # more than sockets hold
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


async def large(scope: Any, receive: Any, send: Any) -> None:
    """A large answer, after which nothing is waited for but a next request."""
    if scope["type"] == "http":
        ImpatientProtocol.patience_s = 0.0
        headers = [(b"content-length", str(N_BYTES).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(N_BYTES)})


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """An answer whose end nobody waits for."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            await asyncio.sleep(0)


def test_a_slow_reader_has_all_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "patience_s", 60.0)
    with connection(large) as client:
        client.sendall(REQUEST)
        n_bytes = len(client.recv(65536).partition(b"\r\n\r\n")[2])
        while n_bytes < N_BYTES and (data := client.recv(16384)):
            n_bytes += len(data)
    assert n_bytes == N_BYTES


@pytest.mark.parametrize("app", [large, endless])
def test_a_client_that_does_not_read_is_given_up(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lost, connection_lost = threading.Event(), ImpatientProtocol.connection_lost

    def lose(protocol: ImpatientProtocol, error: Exception | None) -> None:
        connection_lost(protocol, error)
        lost.set()

    monkeypatch.setattr(ImpatientProtocol, "connection_lost", lose)
    monkeypatch.setattr(ImpatientProtocol, "patience_s", 60.0)
    monkeypatch.setattr(ImpatientProtocol, "reader_patience_s", 0.1)
    with connection(app) as client:
        client.sendall(REQUEST)
        assert lost.wait(60), "the connection is aborted"
        assert len(everything(client)) < N_BYTES


class Buffer:
    """A transport that sends when it is told to."""

    waiting, is_aborted = 0, False

    def write(self, data: bytes) -> None:
        self.waiting += len(data)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.is_aborted = True


def test_what_goes_shows_that_the_client_reads() -> None:
    async def scenario() -> None:
        transport = Buffer()
        watched = GuardedTransport(transport, lambda: False, reader_patience_s=3600.0)
        watched.write(bytes(100))
        for n_sent, n_more in ((1, 0), (10, 50), (5, 5)):
            transport.waiting -= n_sent
            watched.write(bytes(n_more))
            watched._look()
            assert not transport.is_aborted
        watched.write(bytes(10))
        watched._look()
        assert transport.is_aborted, "there is more to send, and nothing has gone"
        watched.lost()

    asyncio.run(scenario())
