"""Clients that send little or nothing: 408 for an upload, an end for connections that wait for headers or draining."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from service.errors import UploadTooSlow
from service.http.app import create_app
from service.http.protocol import KEEP_ALIVE_S, ImpatientProtocol
from service.http.upload_pace import UploadPace
from tests.support import synthetic
from tests.support.serving import PATH, engine_for, settings_for
from tests.support.sockets import connection, everything, refusing


async def body_under(pace: dict[str, Any], messages: list[Message], then: asyncio.Event | None = None) -> int:
    """How many bytes an application reads of messages that come at once, and of a last one that comes with `then`."""
    n_bytes = 0

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        assert then is not None
        await then.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal n_bytes
        while True:
            message = await receive()
            n_bytes += len(message["body"])
            if not message["more_body"]:
                return

    async def send(message: Message) -> None:
        raise AssertionError

    await UploadPace(app, **pace)({"type": "http"}, receive, send)
    return n_bytes


def piece(n_bytes: int) -> Message:
    return {"type": "http.request", "body": bytes(n_bytes), "more_body": True}


def test_what_has_come_buys_time_for_the_rest() -> None:
    async def scenario() -> None:
        with pytest.raises(UploadTooSlow):
            await body_under({"floor_s": 0.0, "bytes_per_s": 10**9}, [piece(1)], asyncio.Event())
        then = asyncio.Event()
        asyncio.get_running_loop().call_soon(then.set)
        assert await body_under({"floor_s": 0.0, "bytes_per_s": 1}, [piece(3600)], then) == 3600
        then.clear()
        asyncio.get_running_loop().call_soon(then.set)
        assert await body_under({"floor_s": 3600.0, "bytes_per_s": 10**9}, [piece(1)], then) == 1

    asyncio.run(scenario())


def test_a_body_that_pauses_is_given_up_however_much_has_come() -> None:
    async def scenario() -> None:
        with pytest.raises(UploadTooSlow, match=r"The upload paused for 0\.001 s\."):
            await body_under({"floor_s": 3600.0, "bytes_per_s": 1, "idle_s": 0.001}, [piece(10**6)], asyncio.Event())

    asyncio.run(scenario())


def test_a_slow_upload_is_told_so_in_the_envelope(tmp_path: Path) -> None:
    folder = synthetic.save_synthetic(tmp_path / "synthetic")
    with engine_for(settings_for(folder)) as engine:
        # As read_settings would not let through: nothing that has to be waited for is in time.
        object.__setattr__(engine.settings, "upload_floor_s", 0.0)
        with connection(create_app(engine)) as client:
            client.sendall(
                f"POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                "Content-Length: 1000\r\n\r\n--b\r\n".encode()
            )
            told = everything(client).decode()
    assert told.startswith("HTTP/1.1 408 ") and '"code":"upload_too_slow"' in told
    assert "x-should-retry: false" in told and "connection: close" in told.lower()


def test_headers_that_do_not_come_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "patience_s", 0.0)
    with connection(refusing) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: he")
        assert everything(client) == b""


def test_a_body_that_nobody_reads_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "patience_s", 1.0)
    with connection(refusing) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000\r\n\r\nx")
        assert everything(client).startswith(b"HTTP/1.1 401 ")


async def refusing_without_patience(scope: Any, receive: Any, send: Any) -> None:
    """From the first request on nothing is waited for but a next one."""
    if scope["type"] == "http":
        ImpatientProtocol.patience_s = 0.0
    await refusing(scope, receive, send)


def test_a_connection_between_two_requests_outlives_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "patience_s", 60.0)
    with connection(refusing_without_patience) as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
        client.sendall(b"GET / HTTP/1.1\r\nHost: he")
        assert everything(client) == b"", "the headers of the next one are to come whole"
    assert KEEP_ALIVE_S > 60, "as long as a load balancer keeps its connections"


def test_a_connection_whose_body_came_after_the_answer_outlives_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "patience_s", 1.0)
    with connection(refusing) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n\r\nx")
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
        client.sendall(b"yyy")
        with socket.create_connection(client.getpeername(), timeout=60) as later:
            assert everything(later) == b"", "patience with one that came later is at its end"
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_connection_whose_body_came_after_the_answer_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.server.KEEP_ALIVE_S", 1)
    monkeypatch.setattr(ImpatientProtocol, "patience_s", 3600.0)
    with connection(refusing) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n\r\nx")
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
        client.sendall(b"yyy")
        assert everything(client) == b""


def test_a_connection_is_kept_for_the_next_request() -> None:
    with connection(refusing) as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
