"""A model hub for tests: the Hugging Face hub's routes on a free port, with the faults of real networks."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "5a" * 20
LARGE_BYTES = 100_000  # files this large are outside Git, with a SHA-256


class FakeHub:
    """Its repositories, its faults, and the requests that it received."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.licence = "apache-2.0"
        self.commit = COMMIT
        self.token = ""  # if set, required for everything
        self.gated = False
        self.cuts: list[int] = []  # each download ends after the next number of bytes, until none are left
        self.statuses: list[int] = []  # of the next responses
        self.ignores_ranges = False
        self.wrong: dict[str, bytes] = {}  # file name → the content sent instead
        self.claimed: dict[str, int] = {}  # file name → the size announced for it
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization
        self.url = ""
        self.stalls = False  # a resumed download gets nothing until the hub closes
        self.stalled, self.closed = threading.Event(), threading.Event()
        self.states_sums = True
        self.endless = False  # the description
        self.description: bytes | None = None  # instead of the true one
        self.elsewhere = ""  # another hub that files are redirected to

    def add(self, repo: str, folder: Path) -> None:
        """Offer a folder's files as a repository."""
        self.repos[repo] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def downloads(self) -> list[str]:
        """The files that were sent, whole or in part, in order."""
        return [path.rpartition("/")[2] for path, *_ in self.asked if path.startswith("/cdn/")]

    def described(self, repo: str) -> bytes:
        siblings = []
        for name, content in self.repos[repo].items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"rfilename": name, "size": self.claimed.get(name, len(content)), "blobId": git}
            if not self.states_sums:
                del entry["blobId"]
            elif len(content) > LARGE_BYTES:
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return json.dumps({"sha": self.commit, "cardData": {"license": self.licence}, "siblings": siblings}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"

    def log_message(self, *_: object) -> None:
        """Nothing on stderr, which tests read."""

    def do_GET(self) -> None:
        hub = self.server.hub
        # A proxy receives absolute URLs.
        path = self.path.removeprefix("http://hub.invalid").partition("?")[0]
        token, wanted = self.headers.get("authorization"), self.headers.get("range")
        hub.asked.append((path, wanted, token))
        parts = path.strip("/").split("/")
        if hub.statuses:
            self._answer(hub.statuses.pop(0), b"trouble")
        elif parts[0] == "cdn":
            self._send("/".join(parts[1:3]), parts[3], wanted)
        elif hub.gated and token is None:
            self._answer(401, b"terms", {"x-error-code": "GatedRepo"})
        elif hub.token and token != f"Bearer {hub.token}":
            self._answer(401, b"who?", {"x-error-code": "RepoNotFound"})
        elif parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in hub.repos:
            if parts[5] not in ("main", hub.commit):
                self._answer(404, b"no", {"x-error-code": "RevisionNotFound"})
            elif hub.endless:
                self._endless()
            else:
                self._answer(200, hub.description or hub.described("/".join(parts[2:4])))
        elif parts[2:4] == ["resolve", hub.commit] and parts[4] in hub.repos["/".join(parts[:2])]:
            address = f"{hub.elsewhere}/cdn/{parts[0]}/{parts[1]}/{parts[4]}"
            self._answer(302, b"", {"location": address})
        else:
            self._answer(404, b"no", {"x-error-code": "RepoNotFound"})

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has hung up
            self.wfile.write(b'{"siblings": [')
            while True:
                self.wfile.write(b" " * 65_536)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send(self, repo: str, name: str, wanted: str | None) -> None:
        hub = self.server.hub
        content = hub.wrong.get(name, hub.repos[repo][name])
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and not hub.ignores_ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("content-length", str(len(content) - start))
        if start:
            self.send_header("content-range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = start + hub.cuts.pop(0) if hub.cuts and len(content) > LARGE_BYTES else len(content)
        if hub.stalls and start:
            hub.stalled.set()
            hub.closed.wait()
            return
        self.wfile.write(content[start:end])
        if end < len(content):
            self.close_connection = True  # in the middle of the announced body


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub on a free port of this machine, until the block ends."""
    hub = FakeHub()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.hub = hub
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closed.set()
            server.shutdown()
            thread.join()
