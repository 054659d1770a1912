"""A refusal arrives though its client is still sending, and a client that sends for ever is cut."""

import json
import logging
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from service.http.guards import MOST_PAUSE_S, Throttle
from service.http.protocol import ImpatientProtocol
from tests.support import synthetic
from tests.support.processes import ServerProcess, server_process
from tests.support.serving import PATH
from tests.support.sockets import connection, everything, refusing
from tests.support.waiting import until

KEY = "a-key-of-some-length-0123456789"
BODY_BYTES = 2 * 2**20
CHUNKED = "Transfer-Encoding: chunked\r\n\r\n"
TYPE = "Content-Type: multipart/form-data; boundary=b\r\n"
REFUSED_FIELD = b'--b\r\nContent-Disposition: form-data; name="temperature"\r\n\r\nnan\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n")
    with server_process(folder, tmp_path_factory.mktemp("cache"), api_keys_file=keys, max_upload_bytes=1000) as server:
        yield server


def address(server: ServerProcess) -> tuple[str, int]:
    found = re.fullmatch(r"http://(.*):(\d+)", server.url)
    assert found is not None
    return found[1], int(found[2])


def head(path: str, *lines: str, n_bytes: int = BODY_BYTES) -> bytes:
    more = "".join(f"{line}\r\n" for line in lines)
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{TYPE}Content-Length: {n_bytes}\r\n{more}\r\n".encode()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def is_cut(client: socket.socket) -> bool:
    """Whether the server has closed the connection, which sending a byte shows."""
    try:
        client.sendall(b"x")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def send_until_cut(client: socket.socket) -> int:
    """Send, a GiB at most, until the server resets the connection; how many bytes went before."""
    for n_sent in range(0, 2**30, 65536):
        try:
            client.sendall(bytes(65536))
        except (BrokenPipeError, ConnectionResetError):
            return n_sent
    pytest.fail("the client is not cut")


@pytest.mark.parametrize(
    "status, path, lines, first",
    [
        (401, PATH, (), b""),
        (404, "/nothing", (f"Authorization: Bearer {KEY}",), b""),
        (413, PATH, (f"Authorization: Bearer {KEY}",), FILE),
        (400, PATH, (f"Authorization: Bearer {KEY}",), REFUSED_FIELD),
    ],
    ids=["key", "path", "size", "field"],
)
def test_a_client_that_sends_all_before_it_reads_has_its_answer(
    server: ServerProcess, status: int, path: str, lines: tuple[str, ...], first: bytes
) -> None:
    for _ in range(5):
        with socket.create_connection(address(server), timeout=60) as client:
            client.sendall(head(path, "Connection: close", *lines))
            client.sendall(first + bytes(BODY_BYTES - len(first)))
            told, _, body = everything(client).partition(b"\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 %d " % status) and b"\r\nconnection: close" in told.lower()
        assert json.loads(body)["error"]["message"]


def test_what_is_no_http_is_told_so(server: ServerProcess) -> None:
    with socket.create_connection(address(server), timeout=60) as client:
        client.sendall(b"\0" * 100_000 + b"\r\n\r\n" + bytes(BODY_BYTES))
        told, _, body = everything(client).partition(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body)["error"] == {
        "message": "Invalid HTTP request received.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_a_request_that_turns_out_no_http_has_one_answer(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with connection(refusing) as client:
        client.sendall(f"{method} / HTTP/1.1\r\nHost: localhost\r\n{CHUNKED}ZZZ\r\n".encode())
        told, _, body = everything(client).partition(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 400 ") and b"HTTP/1.1" not in body
    assert not body if method == "HEAD" else json.loads(body)["error"]["message"]
    assert not errors(caplog)


def test_a_body_that_turns_out_no_http_after_its_answer_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    with connection(refusing) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: localhost\r\n{CHUNKED}".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
        client.sendall(b"ZZZ\r\n")
        assert everything(client) == b""
    assert not errors(caplog)


def test_a_body_that_turns_out_no_http_is_the_end_of_an_answer_under_way(caplog: pytest.LogCaptureFixture) -> None:
    received: list[str] = []

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            received.append((await receive())["type"])
            await send({"type": "http.response.body", "body": b"whole"})

    with connection(answering) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: localhost\r\n{CHUNKED}".encode())
        told = b""
        while not told.endswith(b"half\r\n"):
            told += client.recv(65536)
        client.sendall(b"ZZZ\r\n")
        assert everything(client) == b""
    assert received == ["http.disconnect"]
    assert not errors(caplog)


def test_a_large_upload_is_no_exception(server: ServerProcess) -> None:
    n_bytes = 64 * 2**20
    with socket.create_connection(address(server), timeout=60) as client:
        client.sendall(head(PATH, "Connection: close", n_bytes=n_bytes))
        for _ in range(n_bytes // BODY_BYTES):
            client.sendall(bytes(BODY_BYTES))
        assert everything(client).startswith(b"HTTP/1.1 401 ")


def test_a_client_that_sends_for_ever_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "linger_s", 0.2)
    monkeypatch.setattr(ImpatientProtocol, "silence_s", 3600.0)
    with connection(refusing) as client:
        client.sendall(head("/", "Connection: close", n_bytes=2**40))
        send_until_cut(client)


@pytest.mark.parametrize("lines", [("Connection: close",), ()], ids=["last answer", "connection kept"])
def test_what_nobody_reads_comes_slowly(lines: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "linger_s", 1.0)
    monkeypatch.setattr(ImpatientProtocol, "patience_s", 1.0)
    monkeypatch.setattr(ImpatientProtocol, "throttle", Throttle(1.0))
    with connection(refusing) as client:
        client.sendall(head("/", *lines, n_bytes=2**40))
        assert send_until_cut(client) < 32 * 2**20, "what the sockets hold"


def test_a_pace_is_for_all_together() -> None:
    throttle = Throttle(10.0)
    assert [throttle.pause_s(20, now) for now in (5.0, 5.0, 6.0, 100.0)] == [2.0, 4.0, 5.0, 2.0]


def test_no_pause_is_longer_than_the_longest() -> None:
    throttle = Throttle(10.0)
    assert [throttle.pause_s(10**6, 7.0) for _ in range(3)] == [MOST_PAUSE_S] * 3
    assert throttle.pause_s(10, 7.0 + MOST_PAUSE_S) == 1.0, "nothing is owed beyond it"


def test_a_client_that_stays_silent_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "linger_s", 3600.0)
    monkeypatch.setattr(ImpatientProtocol, "silence_s", 0.0)
    with connection(refusing) as client:
        client.sendall(head("/", "Connection: close"))
        assert everything(client).startswith(b"HTTP/1.1 401 ")
        until(lambda: is_cut(client), "the connection is reset")


def test_a_server_that_stops_waits_for_no_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "linger_s", 3600.0)
    monkeypatch.setattr(ImpatientProtocol, "silence_s", 3600.0)
    with connection(refusing) as client:
        client.sendall(head("/", "Connection: close"))
        assert everything(client).startswith(b"HTTP/1.1 401 ")
