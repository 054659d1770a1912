"""200 hostile sessions against a server with its defaults: others are served throughout, and nothing stays behind."""

import base64
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from tests.support.attacks import Held, answered_throughout, connected, returns, together
from tests.support.processes import ServerProcess, server_process
from tests.support.realtime import HANDSHAKE, LiveServer, append, message, pcm
from tests.support.serving import wav
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")

MIB = 1 << 20
ATTACK_S = 8.0
N_OF_A_KIND = 25
GOOD = wav(1.0)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(folder, tmp_path_factory.mktemp("cache"), live_idle_s=20) as server:
        _listen(server)
        yield server


def live(server: ServerProcess) -> LiveServer:
    return LiveServer(None, None, int(server.url.rpartition(":")[2]))  # type: ignore[arg-type]


def _listen(server: ServerProcess, source: str = "127.0.0.1") -> float:
    """A good session of two seconds of speech; how long it took from its commit to its transcript."""
    with live(server).session(source_address=(source, 0)) as client:
        client.configure(turn_detection=None)
        client.send(append(pcm(2.0)), {"type": "input_audio_buffer.commit"})
        began = time.monotonic()
        assert client.until("completed", "failed")[-1]["type"].endswith("completed")
        return time.monotonic() - began


def opened(server: ServerProcess) -> socket.socket:
    """A session, or a refusal; nothing of it is read."""
    client = connected(server)
    client.sendall(HANDSHAKE)
    client.settimeout(1.0)
    return client


def bad_json(client: socket.socket, chance: random.Random) -> None:
    texts = [b"{", b"[" * 60_000, b"[" * MIB, b"[" + b"1," * 300_000 + b"1]", b'{"type": 1}', b"\xff\xfe", b"null"]
    client.sendall(message(chance.choice(texts)))


def bad_base64(client: socket.socket, chance: random.Random) -> None:
    audio = chance.choice(["!", "A", "AAA\n", "=" * 100_000, "é" * 1000, "AAAA" * 100_000 + "?"])
    client.sendall(message(json.dumps({"type": "input_audio_buffer.append", "audio": audio}).encode()))


def giant_appends(client: socket.socket, chance: random.Random) -> None:
    size = chance.choice([MIB, 8 * MIB, 15 * MIB, 30 * MIB])
    audio = base64.b64encode(bytes(size))
    data = message(b'{"type": "input_audio_buffer.append", "audio": "' + audio + b'"}')
    client.sendall(data[: chance.choice([len(data), len(data) // 2])])


def silence(client: socket.socket, chance: random.Random) -> None:
    time.sleep(0.5)


def never_reads(client: socket.socket, chance: random.Random) -> None:
    client.sendall(message(b"{}") * 2000 + message(b"", 9) * 2000)


def vanishes(client: socket.socket, chance: random.Random) -> None:
    for _ in range(chance.randrange(20)):
        client.sendall(message(json.dumps(append(pcm(0.5))).encode()))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    raise ConnectionError


def fast_speech(client: socket.socket, chance: random.Random) -> None:
    client.sendall(message(json.dumps(append(pcm(20.0))).encode()))


def broken_frames(client: socket.socket, chance: random.Random) -> None:
    client.sendall(chance.randbytes(chance.randrange(1, 5000)))


KINDS = [bad_json, bad_base64, giant_appends, silence, never_reads, vanishes, fast_speech, broken_frames]


def test_two_hundred_hostile_sessions(server: ServerProcess) -> None:
    """From one address, which others are not; each is renewed when it ends."""
    assert len(KINDS) * N_OF_A_KIND == 200
    before, end = Held.by(server), time.monotonic() + ATTACK_S
    usual_s = max(_listen(server, "127.0.0.2") for _ in range(3))
    peak = threading.Event()
    largest = before.resident_bytes

    def attack(number: int) -> None:
        chance, kind = random.Random(number), KINDS[number % len(KINDS)]
        while time.monotonic() < end:
            with suppress(OSError), opened(server) as client:
                while time.monotonic() < end:
                    kind(client, chance)
                    if kind is not never_reads:
                        with suppress(TimeoutError):
                            client.settimeout(0.2)
                            if not client.recv(65536):
                                break
                        client.settimeout(1.0)
            time.sleep(0.1)

    def watch() -> None:
        nonlocal largest
        while not peak.wait(0.1):
            largest = max(largest, Held.by(server).resident_bytes)

    with ExitStack() as stack:
        stack.callback(peak.set)
        stack.enter_context(together(watch, *[lambda number=number: attack(number) for number in range(200)]))
        time.sleep(1)
        with answered_throughout(server, GOOD):
            while time.monotonic() < end:
                took_s = _listen(server, "127.0.0.2")
                assert took_s < max(5.0, 20 * usual_s), "another client's session waits for hostile ones"
        peak.set()
    assert largest < before.resident_bytes + 700 * MIB
    returns(server, before, memory_bytes=96 * MIB)
    assert _listen(server) < max(2.0, 10 * usual_s)
    assert "Traceback" not in server.log and "internal_error" not in server.log, server.log[-3000:]


def test_sessions_that_vanish_leave_their_places(server: ServerProcess) -> None:
    for _ in range(3):
        clients = [opened(server) for _ in range(60)]
        for client in clients:
            with suppress(OSError):
                client.recv(65536)
                client.sendall(message(json.dumps(append(pcm(1.0))).encode()))
        for client in clients:
            client.close()
        until(lambda: "wisp_live_sessions 0.0" in httpx2.get(server.url + "/metrics").text, "none is left", 10)
    with ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(live(server).session())
