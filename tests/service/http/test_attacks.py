"""The attacks that once stopped a server, on one with its defaults: it answers good requests throughout, and recovers.

Foreign pages are in test_origins.py, keys files in test_api_keys.py: they ask no endurance of a server.
"""

import io
import random
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
import soundfile

from tests.service.audio.test_decoder_process import matroska
from tests.support import synthetic
from tests.support.attacks import (
    FORM_HEAD,
    Held,
    answered_throughout,
    connected,
    form,
    returns,
    together,
    upload_head,
)
from tests.support.processes import ServerProcess, server_process
from tests.support.serving import PATH, wav
from tests.support.sounds import encoded, speechlike
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")

GOOD = wav(1.0)
DECODED = encoded(speechlike(16_000, 1), 16_000, "FLAC")  # by the process that hostile files are decoded by
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(folder, tmp_path_factory.mktemp("cache")) as server:
        # What stays is made by the first requests: threads, the process that forks decoders.
        statuses = []
        with together(*[lambda: statuses.append(post(server, DECODED))] * 16):
            pass
        assert statuses == [200] * 16
        yield server


def post(server: ServerProcess, file: bytes, **fields: str) -> int:
    return httpx2.post(server.url + PATH, data=fields, files={"file": ("a", file)}, timeout=120).status_code


def silence(seconds: int) -> bytes:
    """In FLAC, where it is small."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, "PCM_16", format="FLAC") as out:
        for _ in range(seconds // 60):
            out.write(np.zeros(60 * 8000, np.int16))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["tags", "packets that never decode", "frames of a byte"])
def test_hostile_files(server: ServerProcess, kind: str) -> None:
    file = {
        "tags": lambda: matroska(tags=20_000),
        "packets that never decode": lambda: matroska(frames=200_000, codec=b"A_FLAC"),
        "frames of a byte": lambda: matroska(frames=750_000),
    }[kind]()
    before = Held.by(server)
    statuses: list[int] = []
    with (
        answered_throughout(server, DECODED),
        together(*[lambda: statuses.append(post(server, file))] * 4),
        connected(server) as leaving,
    ):
        leaving.sendall(upload_head(len(form(file))) + form(file))
        time.sleep(0.5)
    assert statuses == [400] * 4
    returns(server, before, memory_bytes=48 * MIB)


def test_chunks_of_one_byte(server: ServerProcess) -> None:
    before, end = Held.by(server), time.monotonic() + 3

    def attack() -> None:
        with connected(server) as client:
            client.settimeout(5)
            client.sendall(upload_head(None) + b"%x\r\n%s\r\n" % (len(FORM_HEAD), FORM_HEAD))
            while time.monotonic() < end:
                client.sendall(b"1\r\na\r\n" * 10_000)

    with answered_throughout(server, GOOD), together(*[attack] * 4):
        pass
    returns(server, before, memory_bytes=48 * MIB)


def test_sixteen_long_recordings(server: ServerProcess) -> None:
    """Of two hours each, as many as jobs may be open; and eight more that wait."""
    before, long = Held.by(server), silence(7200)
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(24)]
        for client in clients:
            client.sendall(upload_head(len(form(long))) + form(long))
        with answered_throughout(server, GOOD):
            time.sleep(3)
        assert httpx2.get(server.url + "/readyz", timeout=60).status_code == 200
        for client in clients:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
    returns(server, before, memory_bytes=64 * MIB)


@pytest.mark.parametrize(("n_bytes", "source"), [(0, ""), (5000, "127.0.0.2")])
def test_uploads_of_a_byte_a_second(server: ServerProcess, n_bytes: int, source: str) -> None:
    """More than there are places, renewed at once when refused: they hold none, or their address's share of them."""
    before, end = Held.by(server), time.monotonic() + 8
    start = upload_head(1_000_000) + FORM_HEAD + bytes(n_bytes)
    refused: list[bytes] = []

    def attack() -> None:
        while time.monotonic() < end:
            with suppress(OSError), connected(server, source) as client:
                client.sendall(start)
                client.settimeout(0.5)
                while time.monotonic() < end:
                    with suppress(TimeoutError):
                        refused.append(client.recv(100))
                        break
                    client.sendall(b"a")
            time.sleep(0.3)

    with together(*[attack] * 160):
        time.sleep(1)
        with answered_throughout(server, GOOD):
            time.sleep(5)
    assert bool(refused) == bool(n_bytes), "those that hold no place are let be"
    returns(server, before, memory_bytes=64 * MIB)


def test_uploads_that_fall_silent(folder: Path, tmp_path: Path) -> None:
    with server_process(folder, tmp_path, upload_idle_s=2, spool_bytes=12 * MIB) as server:
        assert post(server, DECODED) == 200
        before = Held.by(server)
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(server)) for _ in range(2)]
            for client in clients:
                client.sendall(upload_head(20 * MIB) + FORM_HEAD + bytes(5 * MIB))
            with answered_throughout(server, wav(1.0, rate=48_000)):
                for client in clients:
                    assert client.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert post(server, wav(60.0, rate=48_000)) == 200, "there is room again"
        returns(server, before, memory_bytes=64 * MIB)


def test_idle_connections(server: ServerProcess) -> None:
    before, n_logged = Held.by(server), len(server.log)
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (before.files + 40, hard))
    try:
        with ExitStack() as stack:
            for _ in range(120):
                stack.enter_context(connected(server))
            with answered_throughout(server, GOOD, n_least=20):
                pass
        returns(server, before, memory_bytes=32 * MIB)
        assert server.log[n_logged:].count("cannot accept connections") <= 1
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("n_files", [64, 128])
def test_few_open_files_from_the_start(folder: Path, tmp_path: Path, n_files: int) -> None:
    """With `ulimit -n 64` idle connections end before requests lack files, or a lack is a 503."""
    prelude = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({n_files}, {n_files}))"
    with server_process(folder, tmp_path, prelude=prelude) as server, ExitStack() as stack:
        assert post(server, DECODED) == 200
        before = Held.by(server)
        for _ in range(100):
            stack.enter_context(connected(server))
        with answered_throughout(server, DECODED):
            pass
        statuses: list[int] = []
        with together(*[lambda: statuses.append(post(server, DECODED))] * 40):
            pass
        assert set(statuses) <= {200, 429, 503} and 200 in statuses
        stack.close()
        assert post(server, DECODED) == 200
        returns(server, before, memory_bytes=64 * MIB)
        assert len(server.log) < 40_000


def test_a_burst(server: ServerProcess) -> None:
    """64 requests of ten minutes at once: what they took goes back when they have ended."""
    before, long, statuses = Held.by(server), wav(600.0), list[int]()
    peak = before.resident_bytes
    with together(*[lambda: statuses.append(post(server, long))] * 16):
        while len(statuses) < 16:
            peak = max(peak, Held.by(server).resident_bytes)
            time.sleep(0.1)
    assert set(statuses) <= {200, 429} and 200 in statuses
    assert peak > before.resident_bytes + 32 * MIB, "the burst takes memory"
    returns(server, before, memory_bytes=64 * MIB)


def test_clients_that_leave_at_random(server: ServerProcess) -> None:
    """100 at once, at any moment of an upload or of an answer."""
    before, end, chance = Held.by(server), time.monotonic() + 6, random.Random(0)
    bodies = [form(GOOD), form(DECODED), form(wav(30.0))]
    streamed = b'--attack\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'

    def attack() -> None:
        while time.monotonic() < end:
            body = (streamed if chance.random() < 0.5 else b"") + chance.choice(bodies)
            with suppress(OSError), connected(server) as client:
                client.settimeout(chance.uniform(0.01, 1))
                client.sendall(upload_head(len(body)) + body[: chance.choice([10, 3000, len(body)])])
                if chance.random() < 0.7:
                    client.recv(65536)
                if chance.random() < 0.3:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with together(*[attack] * 100):
        pass
    until(lambda: post(server, GOOD) == 200, "there is room")
    returns(server, before, memory_bytes=64 * MIB)
    assert "internal_error" not in server.log and "Traceback" not in server.log


def test_the_helper_sees_a_server_that_does_not_answer(server: ServerProcess) -> None:
    assert synthetic.SENTENCE in httpx2.post(server.url + PATH, files={"file": ("a", GOOD)}).text
    stopped = threading.Event()

    def stop() -> None:
        server.signal(signal.SIGSTOP)
        stopped.wait(3)
        server.signal(signal.SIGCONT)

    with pytest.raises(AssertionError, match="under attack"), answered_throughout(server, GOOD), together(stop):
        pass
