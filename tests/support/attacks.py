"""Attacks on a server in a process of its own: good requests are answered throughout, and nothing is left behind."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx2

from tests.support.processes import ServerProcess
from tests.support.serving import PATH
from tests.support.waiting import until

BOUND_S = 1.0  # for each good request
SLOWER = 10.0  # than before the attack, where that is more: the machine may be slow itself
REST_S = 0.05  # between two good requests
BOUNDARY = b"attack"
FORM_HEAD = b'--attack\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
FORM_TYPE = b"multipart/form-data; boundary=attack"


class Held(NamedTuple):
    """What a server's processes hold."""

    resident_bytes: int
    threads: int
    files: int  # open ones: sockets, pipes and temporary files too
    processes: int

    @classmethod
    def by(cls, server: ServerProcess) -> "Held":
        """All of its processes together."""
        pids = [server.process.pid]
        for pid in pids:
            with suppress(OSError):
                pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        resident = threads = files = processes = 0
        for pid in pids:
            with suppress(OSError):  # it has ended
                files += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
                threads += len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
                resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                processes += 1
        return cls(resident, threads, files, processes)


@contextmanager
def answered_throughout(server: ServerProcess, file: bytes, *, n_least: int = 5) -> Iterator[None]:
    """A block in which good requests, a transcription of `file` and GET /health in turn, come without a pause.

    Each must be answered 200 within BOUND_S, or SLOWER times what it takes before the block.
    """
    took: dict[str, list[float]] = {"transcription": [], "health": []}
    failures: list[str] = []

    def ask(kind: str, client: httpx2.Client) -> float:
        began = time.monotonic()
        answer = client.post(PATH, files={"file": ("a", file)}) if kind == "transcription" else client.get("/health")
        if answer.status_code != 200:
            failures.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
        return time.monotonic() - began

    def go_on() -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while not failures and (not ended.is_set() or len(took["health"]) < n_least):
                try:
                    for kind, times in took.items():
                        times.append(ask(kind, client))
                except httpx2.HTTPError as error:
                    failures.append(f"{type(error).__name__}: {error}")
                ended.wait(REST_S)

    with httpx2.Client(base_url=server.url, timeout=60) as client:
        bounds = {kind: max(BOUND_S, SLOWER * max(ask(kind, client) for _ in range(10))) for kind in took}
    ended = threading.Event()
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures, failures
    for kind, times in took.items():
        assert max(times) <= bounds[kind], f"a {kind} of {len(times)} took {max(times):.2f} s under attack"


def returns(server: ServerProcess, before: Held, *, memory_bytes: int, files: int = 4, threads: int = 6) -> None:
    """Assert that memory, threads and files return to their earlier level (docs/operations.md lists what may stay)."""

    def is_back() -> bool:
        now = Held.by(server)
        return (
            now.resident_bytes <= before.resident_bytes + memory_bytes
            and now.threads <= before.threads + threads
            and now.files <= before.files + files
            and now.processes <= before.processes
        )

    with suppress(AssertionError):
        until(is_back, "memory, threads, files and processes have returned", 30)
    assert is_back(), f"before: {before}, now: {Held.by(server)}"


def connected(server: ServerProcess, source: str = "") -> socket.socket:
    """A connection to the server, from another loopback address where `source` names one."""
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60, source_address=(source, 0) if source else None)


def upload_head(n_bytes: int | None) -> bytes:
    """The start of an upload that announces so many bytes of body, or comes in chunks."""
    length = b"Transfer-Encoding: chunked" if n_bytes is None else b"Content-Length: %d" % n_bytes
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\n%s\r\n\r\n" % (PATH.encode(), FORM_TYPE, length)


def form(file: bytes) -> bytes:
    """A whole body."""
    return FORM_HEAD + file + b"\r\n--attack--\r\n"


@contextmanager
def together(*attackers: Callable[[], None]) -> Iterator[None]:
    """Each in a thread of its own, until it ends by itself. What a server does to its connection is no failure."""

    def run(attacker: Callable[[], None]) -> None:
        with suppress(OSError, httpx2.HTTPError):
            attacker()

    with ExitStack() as stack:
        threads = [threading.Thread(target=run, args=(attacker,)) for attacker in attackers]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        yield
