"""Idle connections, floods of tiny chunks and ambiguous lengths: the server goes on answering good requests."""

import asyncio
import errno
import http.client
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h11
import httpx2
import pytest

from service.http.connections import AcceptErrors, connections_within, raise_file_limit, thin
from service.http.guards import BOTH_LENGTHS, EVENTS_A_TURN, PacedConnection, Throttle
from service.http.protocol import ImpatientProtocol
from service.http.server import Server
from tests.support.processes import server_process
from tests.support.sockets import everything, refusing

CHUNKED = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


class Counting:
    """An application that reads each body and says how many bytes it had; `turns` counts its own turns of the loop."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.began = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        n_bytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            n_bytes += len(message["body"])
            self.n_bytes = n_bytes
            self.began.set()
            more = message["more_body"]
        answer = str(n_bytes).encode()
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@contextmanager
def listening(app: Any, **options: Any) -> Iterator[tuple[str, int]]:
    """A server around `app`; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app, (), grace_s=0.0, **options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=60)


def answer(client: socket.socket) -> tuple[int, bytes]:
    """The status and body of the next answer."""
    with http.client.HTTPResponse(client) as response:
        response.begin()
        return response.status, response.read()


# Chunks


def chunks(n: int) -> bytes:
    return b"1\r\na\r\n" * n


def test_a_connection_gives_no_more_events_than_it_is_allowed() -> None:
    connection = PacedConnection(h11.SERVER)
    connection.receive_data(CHUNKED + chunks(10))
    connection.allow(3)
    assert [type(connection.next_event()) for _ in range(3)] == [h11.Request, h11.Data, h11.Data]
    assert connection.next_event() is h11.NEED_DATA
    assert connection.is_behind
    connection.allow(100)
    events = [connection.next_event() for _ in range(9)]
    assert [type(event) for event in events[:8]] == [h11.Data] * 8
    assert events[8] is h11.NEED_DATA
    assert connection.n_extra == pytest.approx(6, abs=0.1), "one-byte chunks are extra work"
    connection.receive_data(b"10000\r\n" + bytes(65536) + b"\r\n")
    connection.allow(100)
    assert len(connection.next_event().data) == 65536
    assert connection.n_extra < 0, "large ones are not"


def test_a_body_of_tiny_chunks_comes_whole_and_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "event_throttle", Throttle(40_000))
    with listening(Counting()) as address, connect(address) as client:
        began = time.monotonic()
        client.sendall(CHUNKED + chunks(10_000) + b"0\r\n\r\n")
        assert answer(client) == (200, b"10000")
        assert time.monotonic() - began > 0.2, "ten thousand events take a quarter of a second at that pace"
        client.sendall(GET)
        assert answer(client) == (200, b"0"), "the connection is kept"


def test_tiny_chunks_leave_the_event_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for more than a turn of each attacker: whole reads of them would be 80,000 events before that."""
    monkeypatch.setattr(ImpatientProtocol, "event_throttle", Throttle(1000, most_pause_s=3600))
    turns: list[int] = []
    next_event = PacedConnection.next_event

    def counted(self: PacedConnection) -> Any:
        turns.append(id(self))
        return next_event(self)

    monkeypatch.setattr(PacedConnection, "next_event", counted)
    app = Counting()
    with listening(app) as address, ExitStack() as stack:
        attackers = [stack.enter_context(connect(address)) for _ in range(4)]
        for attacker in attackers:
            attacker.setblocking(False)
            attacker.send(CHUNKED + chunks(20_000))
        assert app.began.wait(60)
        good = stack.enter_context(connect(address))
        good.sendall(GET)
        assert answer(good)[0] == 200
        assert len(turns) < 4 * 8 * EVENTS_A_TURN


def test_tiny_chunks_after_an_answer_are_paced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "event_throttle", Throttle(40_000))

    with listening(refusing) as address, connect(address) as client:
        client.sendall(CHUNKED)
        assert answer(client)[0] == 401
        client.sendall(chunks(5000) + b"0\r\n\r\n" + GET)
        assert answer(client)[0] == 401, "the next request has its answer"


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_two_lengths_are_refused_and_end_the_connection(method: str) -> None:
    request = f"{method} / HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with listening(Counting()) as address, connect(address) as client:
        client.sendall(GET)
        assert answer(client)[0] == 200
        client.sendall(request.encode() + GET)
        told = everything(client)
    assert told.startswith(b"HTTP/1.1 400 ") and told.count(b"HTTP/1.1") == 1
    assert (BOTH_LENGTHS.encode() in told) == (method == "POST")


# Connections


def test_one_connection_too_many_ends_the_longest_idle() -> None:
    with listening(Counting(), most_connections=3) as address, ExitStack() as stack:
        clients = [stack.enter_context(connect(address)) for _ in range(3)]
        for client in clients[::-1]:  # the last one has been idle for longest
            client.sendall(GET)
            assert answer(client)[0] == 200
        with connect(address) as late:
            late.sendall(GET)
            assert answer(late)[0] == 200
            assert clients[2].recv(65536) == b""
            for client in clients[:2]:
                client.sendall(GET)
                assert answer(client)[0] == 200


def test_a_body_that_trickles_gives_way_and_a_request_that_is_answered_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(Counting):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["path"] == "/slow":
                self.began.set()
                while not ended.is_set():
                    await asyncio.sleep(0.001)
            await super().__call__(scope, receive, send)

    monkeypatch.setattr("service.http.protocol.LATE_PACE", 1e12)  # its bytes excuse nothing
    ended, app = threading.Event(), Slow()
    with listening(app, most_connections=2) as address, connect(address) as answered, connect(address) as trickling:
        answered.sendall(GET.replace(b"/ ", b"/slow "))
        assert app.began.wait(60)
        trickling.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\nx")
        with connect(address) as late:
            late.sendall(GET)
            assert answer(late)[0] == 200
        assert trickling.recv(65536) == b""
        ended.set()
        assert answer(answered)[0] == 200


class Member:
    def __init__(self, lateness: float) -> None:
        self.late, self.is_dismissed = lateness, False

    def lateness(self, now: float) -> float:
        return now + self.late

    def dismiss(self) -> None:
        self.is_dismissed = True


def test_a_sixteenth_of_the_connections_goes_at_once() -> None:
    members = [Member(float(late)) for late in range(-32, 32)]
    thin(members, 0.0)
    assert [member.late for member in members if member.is_dismissed] == [28.0, 29.0, 30.0, 31.0]
    busy = [Member(-1.0)]
    thin(busy, 0.0)
    assert not busy[0].is_dismissed
    thin(members, 0.0, share=1 / 4)
    assert sum(member.is_dismissed for member in members) == 16


@pytest.mark.parametrize(
    ("n_files", "n_places", "most", "fit"),
    [(65_536, 144, 2048, 2048), (1024, 144, 2048, 528), (80, 144, 2048, 40), (1, 1, 5, 1), (1024, 1, 5, 5)],
)
def test_connections_leave_files_for_all_else(n_files: int, n_places: int, most: int, fit: int) -> None:
    assert connections_within(n_files, n_places, most) == fit


def test_the_limit_of_open_files_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert raise_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_lack_of_files_is_logged_once_and_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    now, made_room, others = 0.0, [], []

    class Loop:
        def default_exception_handler(self, context: dict[str, Any]) -> None:
            others.append(context)

    report = AcceptErrors(lambda: made_room.append(now), clock=lambda: now)
    context = {"exception": OSError(errno.EMFILE, "Too many open files")}
    with caplog.at_level(logging.ERROR):
        for _ in range(2048):
            report(Loop(), context)
        assert len(caplog.records) == len(made_room) == 1
        now = 61.0
        report(Loop(), context)
    assert len(caplog.records) == 2 and made_room == [0.0, 61.0] and not others
    report(Loop(), {"exception": OSError(errno.EIO, "?")})
    report(Loop(), {"message": "?"})
    assert len(others) == 2


def test_idle_connections_beyond_the_limit_of_files_leave_room_for_requests(folder: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        server = stack.enter_context(server_process(folder, tmp_path))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (60, hard))
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(100):
            stack.enter_context(connect((host, int(port))))
        assert httpx2.get(server.url + "/healthz", timeout=60).status_code == 200
        assert server.log.count("cannot accept connections") == 1
        assert len(server.log) < 10_000
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_a_terminal_that_closes_stops_the_server_in_order(folder: Path, tmp_path: Path) -> None:
    with server_process(folder, tmp_path) as server:
        server.signal(signal.SIGHUP)
        assert server.end() == -signal.SIGHUP
    assert server.log.rstrip().endswith("stopped")
