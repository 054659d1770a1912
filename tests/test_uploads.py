"""Uploads under way: each holds a job's place from its first byte on, and a full disk is told as what it is."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Scope

from service.admission import LOADING_RETRY_S
from service.app import create_app
from tests import serving, synthetic
from tests.serving import PATH, assert_error, engine_for, post, ready, settings_for, wav

FULL = Path("/dev/full")
SCOPE: Scope = {
    "type": "http",
    "method": "POST",
    "path": PATH,
    "raw_path": PATH.encode(),
    "root_path": "",
    "query_string": b"",
    "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
}
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")


class Client:
    """A client whose request the server reads as far as it is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.sent: list[Message] = []
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[Any] | None = None
        self._asked = asyncio.Semaphore(0)

    async def _receive(self) -> Message:
        self._asked.release()
        return await self._messages.get()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def begin(self) -> "Client":
        """Send the form's head, and wait until the server wants more."""
        self._task = asyncio.create_task(self._run())
        self._messages.put_nowait({"type": "http.request", "body": HEAD, "more_body": True})
        await self._asked.acquire()
        await self._asked.acquire()
        return self

    async def _run(self) -> None:
        await self.app(SCOPE, self._receive, self._send)

    async def end(self, *messages: Message) -> int:
        """Send these; the status of the answer."""
        for message in messages:
            self._messages.put_nowait(message)
        self._task = self._task or asyncio.create_task(self._run())
        await self._task
        return int(self.sent[0]["status"])

    def code(self) -> str:
        return str(json.loads(self.sent[1]["body"])["error"]["code"])

    def retry_after(self) -> int:
        return int(dict(self.sent[0]["headers"])[b"retry-after"])


REST: Message = {"type": "http.request", "body": wav(1.0) + b"\r\n--x--\r\n", "more_body": False}
GONE: Message = {"type": "http.disconnect"}


@asynccontextmanager
async def last_place_held(app: ASGIApp) -> AsyncIterator[Client]:
    """An upload that holds the last place, as the next one hears."""
    slow = await Client(app).begin()
    refused = Client(app)
    assert await refused.end() == 429  # it sends nothing, and none of it is asked for
    assert refused.code() == "queue_full" and refused.retry_after() >= 1
    yield slow


def test_an_upload_holds_the_place_of_its_job(folder: Path) -> None:
    async def scenario(app: ASGIApp) -> None:
        async with last_place_held(app) as slow:
            assert await slow.end(REST) == 200
        assert await Client(app).end({**REST, "body": HEAD + REST["body"]}) == 200

    settings = settings_for(folder, workers=1, open_jobs=1, queue_length=0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        asyncio.run(scenario(create_app(ready(engine))))


@pytest.mark.parametrize(
    ("message", "status"), [(GONE, 499), ({"type": "http.request", "body": b"broken", "more_body": False}, 400)]
)
def test_an_upload_that_ends_otherwise_gives_its_place_up(folder: Path, message: Message, status: int) -> None:
    async def scenario(app: ASGIApp) -> None:
        for _ in range(3):
            async with last_place_held(app) as slow:
                assert await slow.end(message) == status

    with engine_for(settings_for(folder, workers=1, open_jobs=1, queue_length=0)) as engine:
        asyncio.run(scenario(create_app(ready(engine))))


def test_uploads_are_counted_while_the_model_loads(folder: Path) -> None:
    async def scenario(app: ASGIApp) -> None:
        first = await Client(app).begin()
        async with last_place_held(app) as slow:
            assert await slow.end(GONE) == 499
        async with last_place_held(app) as slow:
            refused = Client(app)
            assert await refused.end() == 429
            assert refused.retry_after() == LOADING_RETRY_S
            assert await slow.end(GONE) == await first.end(GONE) == 499

    # The engine is never started: its model loads for ever.
    with engine_for(settings_for(folder, open_jobs=1, queue_length=1)) as engine:
        asyncio.run(scenario(create_app(engine)))


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("n_bytes", [1_100_000, 3_000_000])
def test_a_full_disk_is_told_in_the_envelope(folder: Path, monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    """The kernel's own ENOSPC, from the device that has it, in the place of the file that a large upload goes to."""

    def full(**_: object) -> IO[bytes]:
        return FULL.open("w+b")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with engine_for(settings_for(folder)) as engine:
        client = TestClient(create_app(ready(engine)))
        response = post(client, bytes(n_bytes))
        assert_error(response, 503, "no_space")
        assert int(response.headers["retry-after"]) >= 1
        assert post(client).status_code == 200
