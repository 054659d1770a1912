"""When things go wrong inside, when the queue is full, when the client leaves: what is told, and what is left."""

import asyncio
import errno
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import QueueFull
from service.http import jobs
from service.http.app import Engine, create_app
from service.http.request_log import RequestLog
from service.transcription.transcriber import Options, Transcriber
from tests.support import serving
from tests.support.serving import (
    FORM_SCOPE,
    PATH,
    assert_error,
    engine_for,
    events,
    post,
    ready,
    settings_for,
    tone_audio,
    wav,
)


def half_a_guest() -> str:
    """A guest in WAT that gives one segment and traps."""
    numbers = dict.fromkeys(("start", "end", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob"), 0.0)
    segment = {"event": "segment", "id": 0, "seek": 0, "text": " Ask", "tokens": [1], **numbers}
    line = json.dumps(segment) + "\n"
    data = "".join(f"\\{byte:02x}" for byte in line.encode())
    return f"""(module
      (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 64) "{data}")
      (func (export "_start")
        (i32.store (i32.const 0) (i32.const 64))
        (i32.store (i32.const 4) (i32.const {len(line)}))
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        unreachable))"""


@pytest.fixture(scope="module")
def hostile_engine(folder: Path) -> Iterator[Engine]:
    settings = settings_for(folder, workers=1, open_jobs=1, queue_length=0, deadline_floor_s=2.0, deadline_factor=0.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        yield ready(engine)


@pytest.fixture(scope="module")
def hostile(hostile_engine: Engine) -> TestClient:
    return TestClient(create_app(hostile_engine))


@pytest.mark.parametrize(
    ("prompt", "status", "code", "logged"),
    [
        (serving.TRAP, 500, "internal_error", "window_that_traps"),
        (serving.EAT, 500, "internal_error", "window_that_eats"),
        (serving.LOOP, 503, "deadline_exceeded", "window_that_loops"),
        (serving.EXIT, 500, "internal_error", "3"),
    ],
)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_guest_that_fails_fails_alone(
    hostile: TestClient,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    status: int,
    code: str,
    logged: str,
    stream: str,
) -> None:
    monkeypatch.setattr(jobs, "FIRST_EVENT_S", 60)  # a stream's status waits for the failure
    message = assert_error(post(hostile, prompt=prompt, stream=stream), status, code)
    assert "window_that" not in message
    assert logged in caplog.text
    assert post(hostile, response_format="text").text == "All is well.\n"


def test_a_stream_that_fails_in_the_middle_ends_with_the_error(folder: Path) -> None:
    with engine_for(settings_for(folder), guest=half_a_guest()) as engine:
        client = TestClient(create_app(ready(engine)))
        response = post(client, stream="true")
        assert response.status_code == 200
        delta, failure = events(response.text)
        assert (delta["type"], delta["delta"]) == ("transcript.text.delta", "Ask")
        assert set(failure) == {"error"} and set(failure["error"]) == {"message", "type", "param", "code"}
        assert failure["error"]["code"] == "internal_error"
        assert_error(post(client), 500, "internal_error")


def test_a_full_queue_says_when_to_come_back(hostile: TestClient, hostile_engine: Engine) -> None:
    transcriber = hostile_engine.loaded.result(timeout=60)
    running = transcriber.submit(tone_audio(0.5), Options(prompt=serving.LOOP))
    response = post(hostile)
    running.cancel()
    running.future.exception(timeout=60)
    assert_error(response, 429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1
    assert post(hostile).status_code == 200


def test_a_full_queue_refuses_before_the_upload_is_read(hostile: TestClient, hostile_engine: Engine) -> None:
    transcriber = hostile_engine.loaded.result(timeout=60)
    running = transcriber.submit(tone_audio(0.5), Options(prompt=serving.LOOP))

    def upload() -> Iterator[bytes]:
        yield b"no form"

    # What is no form is told so by who reads it.
    response = hostile.post(PATH, content=upload(), headers={"content-type": "multipart/form-data; boundary=x"})
    running.cancel()
    running.future.exception(timeout=60)
    assert_error(response, 429, "queue_full")


ENDLESS_FORM = (  # the hostile guest runs for a minute on it
    b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + serving.LOOP.encode() + b"\r\n"
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + wav(0.5) + b"\r\n--x--\r\n"
)


def test_a_client_that_leaves_takes_its_job_along(folder: Path) -> None:
    with engine_for(settings_for(folder), guest=serving.HOSTILE_GUEST) as engine:
        app = create_app(ready(engine))
        for stream in (b"", b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'):
            messages: list[Message] = [
                {"type": "http.request", "body": stream + ENDLESS_FORM, "more_body": False},
                {"type": "http.disconnect"},
            ]
            sent: list[Message] = []

            async def receive(messages: list[Message] = messages) -> Message:
                return messages.pop(0) if messages else {"type": "http.disconnect"}

            async def send(message: Message, sent: list[Message] = sent) -> None:
                sent.append(message)

            asyncio.run(app(FORM_SCOPE, receive, send))
            assert sent[0]["status"] == 499


def test_a_file_is_decoded_no_further_once_its_client_has_left(folder: Path) -> None:
    """One that is too long, which is known only at its end."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(700 * 8000, np.int16), 8000, format="FLAC")
    head = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    messages: list[Message] = [{"type": "http.request", "body": head + file.getvalue() + b"\r\n--x--\r\n"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    with engine_for(settings_for(folder, max_audio_s=690.0)) as engine:
        asyncio.run(create_app(ready(engine))(FORM_SCOPE, receive, send))
    assert sent[0]["status"] == 499


def test_a_request_that_a_stopping_server_gives_up_is_told_so_and_leaves_the_queue(folder: Path) -> None:
    messages: list[Message] = [{"type": "http.request", "body": ENDLESS_FORM}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not messages:  # the form is read, and the client stays
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    async def give_up(app: ASGIApp, transcriber: Transcriber) -> None:
        task = asyncio.ensure_future(app(FORM_SCOPE, receive, send))
        async with asyncio.timeout(60):
            with suppress(QueueFull):
                while not task.done():
                    await asyncio.sleep(0)
                    transcriber.admission.check_room()
        task.cancel()  # as uvicorn does
        await task

    with engine_for(
        settings_for(folder, workers=1, open_jobs=1, queue_length=1), guest=serving.HOSTILE_GUEST
    ) as engine:
        app, transcriber = create_app(ready(engine)), engine.loaded.result()
        running = transcriber.submit(tone_audio(0.5), Options(prompt=serving.LOOP))
        asyncio.run(give_up(app, transcriber))
        assert sent[0]["status"] == 503
        assert json.loads(sent[1]["body"])["error"]["code"] == "not_ready"
        transcriber.admission.check_room()
        running.cancel()


def test_a_path_cannot_forge_a_log_line(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client.get("/nowhere%0A2026-01-01%20INFO%20-%20all%20is%20well%0D%1B%5B2J")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "wisp" and "GET" in record.message]
    assert line.isprintable()


def test_an_exception_nobody_expected_is_logged_and_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the secret reason")

    with caplog.at_level(logging.ERROR):
        response = TestClient(RequestLog(broken)).get("/", headers={"x-request-id": "r1"})
    assert "secret" not in assert_error(response, 500, "internal_error")
    assert response.headers["x-request-id"] == "r1"
    assert "the secret reason" in caplog.text


def test_a_lack_of_open_files_is_no_fault_of_ours_and_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the request itself, where a large upload goes to the disk, and in its job."""

    def none(*_: object, **__: object) -> IO[bytes]:
        raise OSError(errno.EMFILE, "Too many open files")

    with engine_for(settings_for(folder)) as engine:
        client = TestClient(create_app(ready(engine)))
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "TemporaryFile", none)
            refused = post(client, bytes(1_500_000))
        assert_error(refused, 503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        with monkeypatch.context() as patch:
            patch.setattr("service.transcription.reading.decode", none)
            assert_error(post(client), 503, "overloaded")
        assert post(client).status_code == 200
