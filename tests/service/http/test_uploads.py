"""Uploads under way: each holds a job's place from its first byte on, and a full disk is told as what it is."""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message

from service.errors import NoSpace, QueueFull, StartError, UploadTooSlow
from service.http import uploads as upload_places
from service.http.app import create_app
from service.http.uploads import FIRST_BYTES, LOADING_RETRY_S, SOUND_PACE, UploadPlace, Uploads
from tests.support import serving
from tests.support.serving import FORM_SCOPE, assert_error, engine_for, post, ready, settings_for, wav

FULL = Path("/dev/full")
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
SOUND = wav(1.0)
START = HEAD + SOUND[:FIRST_BYTES]


class Client:
    """A client whose request the server reads as far as it is sent."""

    def __init__(self, app: ASGIApp, scope: Message = FORM_SCOPE, start: bytes = START) -> None:
        self.app, self.scope, self.start = app, scope, start
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
        """Send so much of a form that the upload holds a place, and wait until the server wants more."""
        self._task = asyncio.create_task(self._run())
        self._messages.put_nowait({"type": "http.request", "body": self.start, "more_body": True})
        await self._asked.acquire()
        await self._asked.acquire()
        return self

    async def _run(self) -> None:
        await self.app(self.scope, self._receive, self._send)

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


REST: Message = {"type": "http.request", "body": SOUND[FIRST_BYTES:] + b"\r\n--x--\r\n", "more_body": False}
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
        assert await Client(app).end({**REST, "body": START + REST["body"]}) == 200

    settings = settings_for(folder, workers=1, open_jobs=1, queue_length=0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        asyncio.run(scenario(create_app(ready(engine))))


def test_a_slow_upload_gives_its_place_to_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(app: ASGIApp) -> None:
        slower = await Client(app).begin()
        slow = await Client(app).begin()
        for headers, status in (
            ([(b"content-type", b"text/plain")], 400),
            ([*FORM_SCOPE["headers"], (b"content-length", b"9" * 12)], 413),
        ):
            assert await Client(app, {**FORM_SCOPE, "headers": headers}).end() == status
        await asyncio.sleep(0)  # an upload that has lost its place would answer now
        assert not slower.sent and not slow.sent, "what is refused by its headers takes nobody's place"
        third, fourth = await Client(app).begin(), await Client(app).begin()
        assert await slower.end() == await slow.end() == 408
        assert slower.code() == slow.code() == "upload_too_slow"
        assert await third.end(REST) == await fourth.end(REST) == 200

    # None comes fast enough to keep its place where all are taken.
    settings = settings_for(folder, workers=1, open_jobs=1, queue_length=1)
    monkeypatch.setattr(upload_places, "SOUND_PACE", 10**12)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        app = create_app(ready(engine))
        app.state.service.uploads.slow_after_s = 0.0
        asyncio.run(scenario(app))


class Clock:
    """The uploads' time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


async def read(place: UploadPlace) -> None:
    async with place.reading():
        await asyncio.Event().wait()


def test_the_slowest_gives_way_and_none_that_comes_fast_or_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    async def scenario() -> None:
        uploads = Uploads(4, slow_after_s=5.0)
        with ExitStack() as stack:
            places = [stack.enter_context(uploads.reserve(None)) for _ in range(4)]
            for place in places:
                uploads.count(place)
            fast, slow, slower, _ = places
            readings = [asyncio.create_task(read(place)) for place in (fast, slow, slower)]
            await asyncio.sleep(0)
            for second in range(1, 12):
                clock.now = 100.0 + second
                fast.add(2 * SOUND_PACE)
                slow.add(SOUND_PACE // 2)
                slower.add(SOUND_PACE // 4)
                if second in (5, 6):
                    uploads.count(stack.enter_context(uploads.reserve(None)))
                elif second < 5 or second == 11:
                    with pytest.raises(QueueFull), uploads.reserve(None):
                        pass
                lost = [slower, slow][: max(0, min(second, 6) - 4)]
                assert [place for place in places if place.is_lost] == sorted(lost, key=places.index)
            for reading, place in zip(readings, (fast, slow, slower), strict=True):
                if place.is_lost:
                    with pytest.raises(UploadTooSlow, match="its time limit is 5 s plus one second per 65536"):
                        await reading
                else:
                    reading.cancel()

    asyncio.run(scenario())


def test_an_upload_that_came_fast_and_then_trickles_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    async def scenario() -> None:
        uploads = Uploads(1, slow_after_s=5.0)
        with uploads.reserve(None) as silent, uploads.reserve(None) as trickling:
            readings = [asyncio.create_task(read(place)) for place in (silent, trickling)]
            await asyncio.sleep(0)
            for place in (silent, trickling):
                place.add(10**9)
            for clock.now in (104.0, 108.0, 112.0, 116.0):
                trickling.add(1)
            assert silent.pace() == 0.0 and silent.is_slow()
            assert trickling.pace() < 1 and trickling.is_slow()
            for reading in readings:
                reading.cancel()

    asyncio.run(scenario())


def test_a_connection_that_has_sent_little_holds_no_place(folder: Path) -> None:
    async def scenario(app: ASGIApp) -> None:
        slow = [await Client(app, start=HEAD).begin() for _ in range(20)]
        assert "wisp_uploads 0.0" in TestClient(app).get("/metrics").text
        assert await Client(app).end({**REST, "body": START + REST["body"]}) == 200
        async with last_place_held(app) as holder:
            late = slow.pop()
            assert await late.end({**REST, "body": SOUND + REST["body"]}) == 429, "its place counts once it has come"
            assert await holder.end(GONE) == 499
        for client in slow:
            assert await client.end(GONE) == 499

    with engine_for(
        settings_for(folder, workers=1, open_jobs=1, queue_length=0), guest=serving.HOSTILE_GUEST
    ) as engine:
        asyncio.run(scenario(create_app(ready(engine))))


def test_all_uploads_together_leave_room_for_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    async def scenario() -> None:
        uploads = Uploads(9, spool_bytes=1000, slow_after_s=5.0)
        with ExitStack() as stack:
            large, other, small, later = (stack.enter_context(uploads.reserve(None)) for _ in range(4))
            large.add(700)
            with pytest.raises(NoSpace):
                large.add(100)
            uploads.forget(large)
            large.add(400)
            other.add(400)
            small.add(100)
            with pytest.raises(NoSpace):
                other.add(100)
            reading = asyncio.create_task(read(large))
            await asyncio.sleep(0)
            clock.now = 105.0
            later.add(200)
            with pytest.raises(UploadTooSlow):
                await reading
        assert uploads.n_spooled == 0

    asyncio.run(scenario())


def test_no_more_slow_uploads_give_way_than_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    async def scenario() -> None:
        uploads = Uploads(50, spool_bytes=1_000_000, slow_after_s=5.0)
        with ExitStack() as stack:
            *trickling, slow, slower, large = (stack.enter_context(uploads.reserve(None)) for _ in range(23))
            slower.add(100_000)
            clock.now = 100.1
            slow.add(100_000)
            for place in trickling[:10]:  # the others have sent nothing
                place.add(1)
            others = (*trickling, slow, slower)
            readings = [asyncio.create_task(read(place)) for place in others]
            await asyncio.sleep(0)
            clock.now = 110.0

            large.add(590_000)
            assert not any(place.is_lost for place in others)
            large.add(40_000)  # three times what is left without the slowest's
            assert [place for place in others if place.is_lost] == [slower]
            large.add(500)
            assert [place for place in others if place.is_lost] == [slower], "its bytes are not counted again"
            assert uploads.n_spooled <= uploads.spool_bytes
            with pytest.raises(NoSpace):
                large.add(500_000)
            assert [place for place in others if place.is_lost] == [slower], "none gives way for nothing"
            for reading in readings:
                reading.cancel()
            await asyncio.gather(*readings, return_exceptions=True)

    asyncio.run(scenario())


def test_bytes_are_on_the_disk_until_the_job_has_ended() -> None:
    uploads, job = Uploads(1, spool_bytes=1000), Future[None]()

    async def scenario() -> None:
        with uploads.reserve(None) as place:
            place.add(500)
            place.keep_until(job)
        assert uploads.n_spooled == 500

    asyncio.run(scenario())
    job.set_result(None)
    assert uploads.n_spooled == 0


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
        assert "wisp_uploads 1.0" in TestClient(app).get("/metrics").text
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


@pytest.mark.parametrize("workers, open_jobs", [(0, 1), (3, 1), (2, 16)])
def test_there_are_as_many_places_before_as_after_loading(folder: Path, workers: int, open_jobs: int) -> None:
    with engine_for(settings_for(folder, workers=workers, open_jobs=open_jobs, queue_length=5)) as engine:
        before = create_app(engine).state.service.uploads.n_places
        transcriber = ready(engine).transcriber
        assert transcriber is not None
        assert transcriber.admission.n_places == before == max(workers, open_jobs) + 5


def test_the_folder_for_uploads_is_found_at_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question for it writes to it, which a full disk refuses."""
    candidates = [str(folder / "none")]
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: candidates)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with engine_for(settings_for(folder)) as engine:
        with pytest.raises(StartError, match="TMPDIR"):
            create_app(engine)
        candidates[0] = str(folder)
        client = TestClient(create_app(ready(engine)))
        candidates[0] = str(folder / "none")
        assert_error(post(client, bytes(1_100_000)), 400, "unreadable_audio", "file")


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
