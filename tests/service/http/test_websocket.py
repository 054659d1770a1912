"""WebSocket connections: how HTTP hands them over, what they may send, and what a flood or a slow client cannot do."""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from websockets.sync.client import connect

from service.http.server import Server
from service.http.websocket import SMALL_BYTES, LargeMessages, WebSocket
from tests.support.sockets import everything
from tests.support.waiting import until

KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
HANDSHAKE = (
    "GET /echo HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    f"{KEY}Sec-WebSocket-Version: 13\r\n"
)


class Echo:
    """Says each text message's length; `turn_s` is the longest turn of its event loop."""

    def __init__(self) -> None:
        self.turn_s, self.n_messages = 0.0, 0
        self.may_read = threading.Event()
        self.may_read.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            answer = b"plain"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            await send({"type": "http.response.body", "body": answer})
        if scope["type"] != "websocket":
            return
        await receive()
        if scope["path"] == "/refused":
            await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"no"})
            return
        await send({"type": "websocket.accept"})
        watching = asyncio.create_task(self._watch())
        while True:
            while not self.may_read.is_set():
                await asyncio.sleep(0.01)
            message = await receive()
            if message["type"] == "websocket.disconnect":
                watching.cancel()
                return
            self.n_messages += 1
            while scope["path"] == "/talk":
                await send({"type": "websocket.send", "text": "x" * 100_000})
            if scope["path"] == "/echo":
                await send({"type": "websocket.send", "text": str(len(message["text"]))})

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            self.turn_s = max(self.turn_s, time.monotonic() - began)


@contextmanager
def listening(app: Any, **options: Any) -> Iterator[tuple[Server, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app, (), grace_s=0.0, **options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield server, listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def raw(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def frame(payload: bytes, opcode: int = 1, *, is_last: bool = True) -> bytes:
    """A client's, masked with zeros."""
    head = bytes([(0x80 if is_last else 0) | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


def opened(port: int, path: str = "/echo") -> socket.socket:
    client = raw(port)
    client.sendall((HANDSHAKE.replace("/echo", path) + "\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return client


def said(client: socket.socket) -> str:
    """The next text frame of a server, of less than 126 bytes; pings before it are passed over."""
    while True:
        opcode, size = client.recv(2, socket.MSG_WAITALL)
        payload = client.recv(size, socket.MSG_WAITALL) if size else b""
        if opcode == 0x81:
            return payload.decode()
        assert opcode == 0x89, (opcode, payload)


def test_a_connection_is_handed_over_after_requests_on_it() -> None:
    with listening(Echo()) as (_, port), raw(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" + (HANDSHAKE + "\r\n").encode())
        answer = b""
        while b"\r\n\r\n" not in answer.partition(b"plain")[2]:
            answer += client.recv(4096)
        assert answer.count(b"HTTP/1.1 101 ") == 1
        client.sendall(frame(b"hello"))
        assert said(client) == "5"


@pytest.mark.parametrize(
    "head",
    [
        HANDSHAKE + "Content-Length: 5\r\n",
        HANDSHAKE + "Transfer-Encoding: chunked\r\n",
        HANDSHAKE.replace("GET", "POST") + "Content-Length: 0\r\n",
        HANDSHAKE.replace("websocket", "h2c"),
        HANDSHAKE.replace("keep-alive, Upgrade", "keep-alive"),
    ],
)
def test_what_is_no_handshake_is_a_plain_request(head: str) -> None:
    with listening(Echo()) as (_, port), raw(port) as client:
        client.sendall((head + "\r\n0\r\n\r\n").encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "head",
    [
        HANDSHAKE.replace(KEY, ""),
        HANDSHAKE.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"),
        HANDSHAKE.replace("Version: 13", "Version: 8"),
        HANDSHAKE + f"Cookie: {'x' * 20_000}\r\n",
        HANDSHAKE + "".join(f"X-{i}: y\r\n" for i in range(200)),
        HANDSHAKE.replace("/echo", "/echo?" + "x" * 20_000),
    ],
)
def test_a_handshake_that_cannot_be_is_refused_in_openais_envelope(head: str) -> None:
    with listening(Echo()) as (_, port), raw(port) as client:
        client.sendall((head + "\r\n").encode())
        start, _, body = everything(client).partition(b"\r\n\r\n")
        assert (
            start.split()[1] in (b"400", b"414", b"426", b"431") and b"content-type: application/json" in start.lower()
        )
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"].endswith(".")


def test_a_refusal_is_logged_as_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with listening(Echo()) as (_, port), raw(port) as client:
        client.sendall((HANDSHAKE.replace("/echo", "/refused") + "\r\n").encode())
        assert everything(client).startswith(b"HTTP/1.1 403 ")
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@pytest.mark.parametrize("size", [1, 5000, 70_000, SMALL_BYTES + 1, 900_000])
def test_messages_of_any_size_in_pieces_of_any_size(size: int) -> None:
    with listening(Echo()) as (_, port), opened(port) as client:
        data = frame(b"a" * size)
        client.sendall(data[:7])
        time.sleep(0.05)
        client.sendall(data[7:])
        assert said(client) == str(size)
        client.sendall(frame(b"b" * (size // 2), is_last=False) + frame(b"", 9) + frame(b"b" * (size - size // 2), 0))
        head = client.recv(2, socket.MSG_WAITALL)
        assert head == b"\x8a\x00", "a ping between two fragments is answered"
        assert said(client) == str(size)


def test_a_message_over_the_limit_ends_the_connection() -> None:
    with (
        listening(Echo(), message_bytes=1000) as (_, port),
        connect(f"ws://127.0.0.1:{port}/echo", proxy=None) as client,
    ):
        client.send("a" * 1001)
        with pytest.raises(Exception, match="1009"):
            client.recv(10)


def test_text_that_is_none_ends_the_connection_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with listening(Echo()) as (_, port), opened(port) as client:
        client.sendall(frame(b"\xff\xfe"))
        assert struct.pack("!H", 1007) in everything(client)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_no_compression_is_agreed_on() -> None:
    with listening(Echo()) as (_, port), connect(f"ws://127.0.0.1:{port}/echo", proxy=None) as client:
        assert not client.protocol.extensions


def test_a_flood_of_tiny_frames_leaves_the_loop_to_others() -> None:
    app = Echo()
    with listening(app) as (_, port), opened(port) as client, raw(port) as other:
        flood = (frame(b"", 9) + frame(b"a") + frame(b"", 10)) * 30_000
        sending = threading.Thread(target=_send_quietly, args=(client, flood))
        sending.start()
        reading = threading.Thread(target=_read_quietly, args=(client,))
        reading.start()
        for _ in range(20):
            other.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = b""
            while not answer.endswith(b"plain"):
                answer += other.recv(4096)
            time.sleep(0.05)
        n_messages = app.n_messages
        client.shutdown(socket.SHUT_RDWR)
        sending.join()
        reading.join()
    assert 0 < n_messages < 30_000, "it is read at a pace"
    assert app.turn_s < 0.2


def _send_quietly(client: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        client.sendall(data)


def _read_quietly(client: socket.socket) -> None:
    with suppress(OSError):
        while client.recv(65536):
            pass


def test_few_large_messages_are_received_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WebSocket, "large_messages", LargeMessages(1))
    size = 4 << 20
    with listening(Echo(), message_bytes=size) as (_, port), opened(port) as first, opened(port) as second:
        first.sendall(frame(b"a" * size)[: 1 << 20])  # and no more for now
        time.sleep(0.3)
        waiting = threading.Thread(target=second.sendall, args=(frame(b"b" * (size - 1)),))
        waiting.start()
        second.settimeout(0.5)
        with pytest.raises(TimeoutError):
            second.recv(1)
        first.sendall(frame(b"a" * size)[1 << 20 :])
        assert said(first) == str(size)
        second.settimeout(20)
        assert said(second) == str(size - 1)
        waiting.join()


class Receiving:
    """A connection that receives a large message."""

    def __init__(self, client_name: str) -> None:
        self.client_name, self.may = client_name, False

    def large_began(self) -> None:
        self.may = True

    def go_on(self) -> None:
        assert self.may


def test_one_client_does_not_hold_up_others_large_messages() -> None:
    large: Any = LargeMessages(2)
    own, others = [Receiving("a") for _ in range(6)], [Receiving("b"), Receiving("c")]
    assert [large.may(one) for one in (*own, *others)] == [True] * 2 + [False] * 6
    large.done(own[0])
    assert [one.may for one in (*own[2:4], *others)] == [False, False, True, False]
    large.done(others[0])
    assert [one.may for one in (*own[2:4], *others)] == [False, False, True, True]
    large.done(others[1])
    assert [one.may for one in own[2:4]] == [True, False], "no place stays empty"


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_leaves_while_it_is_not_read(how: str) -> None:
    app = Echo()
    with listening(app) as (server, port), opened(port) as client:
        app.may_read.clear()
        client.sendall(frame(b"a") * 100)
        if how == "RST":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        until(lambda: not server.server_state.connections, "it is noticed", 5)
        app.may_read.set()


@pytest.mark.parametrize("leaves", [False, True])
def test_a_large_message_that_does_not_come_gives_its_turn_back(monkeypatch: pytest.MonkeyPatch, leaves: bool) -> None:
    monkeypatch.setattr(WebSocket, "large_messages", LargeMessages(1))
    monkeypatch.setattr(WebSocket, "large_s", 60.0 if leaves else 0.5)
    size = 2 << 20
    with listening(Echo(), message_bytes=size) as (_, port), opened(port) as first, opened(port) as second:
        first.sendall(frame(b"a" * size)[: 1 << 20])
        time.sleep(0.2)
        sending = threading.Thread(target=second.sendall, args=(frame(b"b" * size),))
        sending.start()
        if leaves:
            first.close()
        assert said(second) == str(size)
        sending.join()
        if not leaves:
            assert struct.pack("!H", 1013) in everything(first)


def test_a_client_that_is_not_read_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers to pings wait behind its audio."""
    monkeypatch.setattr("service.http.server.PING_S", 0.2)
    app = Echo()
    with listening(app) as (_, port), connect(f"ws://127.0.0.1:{port}/echo", proxy=None, ping_interval=None) as client:
        app.may_read.clear()
        for _ in range(3):
            client.send("abc")
        time.sleep(1.5)
        app.may_read.set()
        assert [client.recv(10) for _ in range(3)] == ["3"] * 3


def test_a_client_that_answers_no_ping_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.server.PING_S", 0.2)
    with listening(Echo()) as (_, port), opened(port) as client:
        client.settimeout(10)
        assert struct.pack("!H", 1011) in everything(client)


def test_a_client_that_reads_nothing_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.protocol.ImpatientProtocol.reader_patience_s", 0.3)
    with listening(Echo()) as (server, port), opened(port, "/talk") as client:
        client.sendall(frame(b"talk"))
        until(lambda: not server.server_state.connections, "it is closed", 20)
        until(lambda: not server.server_state.tasks, "its task has ended", 5)


def test_a_connection_is_never_thinned_out_for_others() -> None:
    with listening(Echo(), most_connections=3) as (_, port), opened(port) as client:
        idle = [raw(port) for _ in range(20)]
        time.sleep(0.3)
        client.sendall(frame(b"hello"))
        assert said(client) == "5"
        for other in idle:
            other.close()
