"""The API as clients meet it: words for sound in every format, and OpenAI's envelope for everything else."""

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import Engine, create_app
from service.errors import QueueFull
from service.request_log import RequestLog
from service.settings import Settings
from service.transcriber import Options, Transcriber
from tests import serving, synthetic
from tests.conftest import shared_path
from tests.serving import PATH, assert_error, engine_for, events, post, ready, settings_for, tone_audio, wav

ODD = sorted((shared_path() / "audio-odd").glob("*.wav"))


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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    settings = settings_for(folder, max_upload_bytes=300_000, max_audio_s=20.0)
    with engine_for(settings) as engine, TestClient(create_app(engine)) as client:
        yield client


@pytest.fixture(scope="module")
def hostile_engine(folder: Path) -> Iterator[Engine]:
    settings = settings_for(folder, workers=1, queue_length=0, deadline_floor_s=2.0, deadline_factor=0.0)
    with engine_for(settings, guest=serving.HOSTILE_GUEST) as engine:
        yield ready(engine)


@pytest.fixture(scope="module")
def hostile(hostile_engine: Engine) -> TestClient:
    return TestClient(create_app(hostile_engine))


# Words for sound


def test_a_file_alone_gives_its_words(client: TestClient) -> None:
    response = post(client)
    assert response.status_code == 200
    assert response.json() == {"text": synthetic.SENTENCE, "usage": {"type": "duration", "seconds": 1}}


@pytest.mark.parametrize(
    ("response_format", "media_type", "start"),
    [
        ("json", "application/json", '{"text": "Ask not what"'),
        ("text", "text/plain; charset=utf-8", "Ask not what\n"),
        ("srt", "text/plain; charset=utf-8", "1\n00:00:00,000 --> 00:00:02,000\nAsk not what\n"),
        ("vtt", "text/vtt; charset=utf-8", "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nAsk not what\n"),
    ],
)
def test_formats(client: TestClient, response_format: str, media_type: str, start: str) -> None:
    response = post(client, response_format=response_format)
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.text.startswith(start)


def test_verbose_json_has_segments_and_the_audios_length(client: TestClient) -> None:
    body = post(client, wav(4.5), response_format="verbose_json").json()
    assert (body["task"], body["language"], body["duration"]) == ("transcribe", "english", 4.5)
    assert [(s["start"], s["end"], s["text"]) for s in body["segments"]] == [
        (0.0, 2.0, " Ask not what"),
        (3.0, 5.0, " Ask not what"),
    ]
    assert body["text"] == "Ask not what Ask not what"


def test_the_log_tells_what_was_transcribed_but_not_what_was_said(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        post(client, prompt="a secret", language="en")
    assert "transcribed 1.00 s of WAV in " in caplog.text
    assert "secret" not in caplog.text and synthetic.SENTENCE not in caplog.text


def test_any_rate_is_heard(client: TestClient) -> None:
    assert post(client, wav(1.0, rate=44_100), response_format="text").text == synthetic.SENTENCE + "\n"


@pytest.mark.parametrize("name", ["tests/speech.wav", "../../etc/passwd", "名前.wav", ""])
def test_a_files_name_means_nothing(client: TestClient, name: str) -> None:
    response = client.post(PATH, files={"file": (name or "x", wav(1.0))})
    assert response.status_code == 200


@pytest.mark.parametrize("name", ["synthetic", "whisper-1", "Synthetic", ""])
def test_the_model_answers_to_its_name_and_aliases(client: TestClient, name: str) -> None:
    assert post(client, model=name).status_code == 200


def test_a_preloaded_model_answers_to_its_name_as_it_was_given(folder: Path) -> None:
    settings = Settings(preload=f"My-Whisper.en:Burn:CPU:{folder / 'model.safetensors'}")
    with engine_for(settings) as engine:
        client = TestClient(create_app(ready(engine)))
        (listed,) = client.get("/v1/models").json()["data"]
        assert listed["id"] == "My-Whisper.en"
        for name in (listed["id"], "my_whisper_en"):
            assert client.get(f"/v1/models/{name}").status_code == 200
            assert post(client, model=name).status_code == 200


@pytest.mark.parametrize("language", ["", "en", "en-US", "EN", "english"])
def test_language_is_forgiving(client: TestClient, language: str) -> None:
    assert post(client, language=language).status_code == 200


def test_a_stream_is_deltas_and_one_whole_text(client: TestClient) -> None:
    response = post(client, wav(7.0), stream="true")
    assert response.headers["content-type"].startswith("text/event-stream")
    *deltas, done = events(response.text)
    assert [event["type"] for event in deltas] == ["transcript.text.delta"] * 3
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in deltas) == done["text"] == " ".join([synthetic.SENTENCE] * 3)


# What is refused, and how


def test_a_form_without_a_file_is_refused(client: TestClient) -> None:
    assert_error(client.post(PATH, files={"model": (None, "whisper-1")}), 400, "missing_required_parameter", "file")


def test_a_body_that_is_no_form_is_refused(client: TestClient) -> None:
    assert_error(client.post(PATH, json={"file": "x"}), 400, "malformed_form")
    assert_error(client.post(PATH), 400, "malformed_form")


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "gpt-5"}, 404, "model_not_found", "model"),
        ({"response_format": "docx"}, 400, "unsupported_value", "response_format"),
        ({"temperature": "2"}, 400, "invalid_value", "temperature"),
        ({"language": "klingon"}, 400, "invalid_value", "language"),
        ({"language": "de"}, 400, "unsupported_value", "language"),
        ({"timestamp_granularities[]": "word"}, 400, "unsupported_value", "timestamp_granularities[]"),
        ({"stream": "true", "response_format": "srt"}, 400, "unsupported_value", "response_format"),
        ({"colour": "red"}, 400, "unknown_parameter", "colour"),
    ],
)
def test_fields_are_refused_by_name(
    client: TestClient, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    assert_error(post(client, **fields), status, code, param)


def test_a_bad_field_is_refused_before_a_bad_file(client: TestClient) -> None:
    assert_error(post(client, b"no sound", temperature="hot"), 400, "invalid_value", "temperature")


@pytest.mark.parametrize("file", [b"", b"no sound", b"\x00" * 5000, b"RIFF\xff\xff\xff\xffWAVEfmt "])
def test_what_is_no_sound_is_refused(client: TestClient, file: bytes) -> None:
    assert "WAV" in assert_error(post(client, file), 400, "unreadable_audio", "file")


def test_a_moment_of_sound_is_too_short(client: TestClient) -> None:
    assert_error(post(client, wav(0.05)), 400, "audio_too_short", "file")


def test_sound_is_measured_as_decoded(client: TestClient) -> None:
    assert_error(post(client, wav(30.0, rate=4000)), 413, "audio_too_long", "file")


def test_an_upload_over_the_cap_is_refused(client: TestClient) -> None:
    message = assert_error(post(client, b"x" * 400_000), 413, "upload_too_large", "file")
    assert "300000" in message


def test_an_upload_that_announces_too_much_is_not_read(client: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x", "content-length": str(10**12)}
    message = assert_error(client.post(PATH, content=b"", headers=headers), 413, "upload_too_large", "file")
    assert "announces 1000000000000 bytes" in message


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/audio/transcriptions/", "/v1/nothing", "/%2e%2e/etc/passwd"])
def test_an_unknown_path_is_told_in_the_envelope(client: TestClient, path: str) -> None:
    assert_error(client.get(path), 404, "not_found")


def test_a_wrong_method_is_told_in_the_envelope(client: TestClient) -> None:
    response = client.get(PATH)
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ODD, ids=lambda path: path.name)
def test_odd_files_are_heard_or_refused(client: TestClient, path: Path) -> None:
    response = post(client, path.read_bytes())
    if response.status_code != 200:
        assert response.status_code in (400, 413)
        assert_error(response, response.status_code, response.json()["error"]["code"], "file")


def test_a_wav_cut_off_anywhere_is_heard_or_refused(client: TestClient) -> None:
    whole = wav(0.2)
    for length in [*range(64), *range(64, len(whole), 211)]:
        response = post(client, whole[:length])
        assert response.status_code in (200, 400), (length, response.text)
        if response.status_code == 400:
            assert_error(response, 400, response.json()["error"]["code"], "file")


# Models and request ids


def test_models_are_listed_and_found(client: TestClient) -> None:
    body = client.get("/v1/models").json()
    (model,) = body["data"]
    assert body["object"] == "list"
    assert set(model) == {"id", "object", "created", "owned_by"}
    assert (model["id"], model["object"]) == ("synthetic", "model") and isinstance(model["created"], int)
    assert client.get("/v1/models/synthetic").json() == model
    assert client.get("/v1/models/whisper-1").json()["id"] == "whisper-1"
    for refusal in (client.get("/v1/models/gpt-5"), post(client, model="gpt-5")):
        assert "synthetic, whisper-1" in assert_error(refusal, 404, "model_not_found", "model")
    assert_error(client.get("/v1/models/openai/nothing"), 404, "model_not_found", "model")


def test_a_request_id_is_made_or_kept(client: TestClient) -> None:
    made = [client.get("/healthz").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for sent, kept in {"trace-42": True, "a" * 129: False, "a b": False, "": False}.items():
        got = client.get("/nowhere", headers={"x-request-id": sent}).headers["x-request-id"]
        assert (got == sent) == kept and got


# When things go wrong inside


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
    hostile: TestClient, caplog: pytest.LogCaptureFixture, prompt: str, status: int, code: str, logged: str, stream: str
) -> None:
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
    stop = threading.Event()
    running = transcriber.submit(tone_audio(0.5), Options(prompt=serving.LOOP), None, stop)
    response = post(hostile)
    stop.set()
    running.exception(timeout=60)
    assert_error(response, 429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1
    assert post(hostile).status_code == 200


def test_a_full_queue_refuses_before_the_upload_is_read(hostile: TestClient, hostile_engine: Engine) -> None:
    transcriber = hostile_engine.loaded.result(timeout=60)
    stop = threading.Event()
    running = transcriber.submit(tone_audio(0.5), Options(prompt=serving.LOOP), None, stop)

    def upload() -> Iterator[bytes]:
        yield b"no form"

    # What is no form is told so by who reads it.
    response = hostile.post(PATH, content=upload(), headers={"content-type": "multipart/form-data; boundary=x"})
    stop.set()
    running.exception(timeout=60)
    assert_error(response, 429, "queue_full")


SCOPE: Scope = {
    "type": "http",
    "method": "POST",
    "path": PATH,
    "raw_path": PATH.encode(),
    "root_path": "",
    "query_string": b"",
    "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
}
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

            asyncio.run(app(SCOPE, receive, send))
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
        asyncio.run(create_app(ready(engine))(SCOPE, receive, send))
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
        task = asyncio.ensure_future(app(SCOPE, receive, send))
        with suppress(QueueFull):
            while not task.done():
                await asyncio.sleep(0)
                transcriber.check_room()
        task.cancel()  # as uvicorn does
        await task

    with engine_for(settings_for(folder, workers=1, queue_length=1), guest=serving.HOSTILE_GUEST) as engine:
        app, transcriber = create_app(ready(engine)), engine.loaded.result()
        stop = threading.Event()
        transcriber.submit(tone_audio(0.5), Options(prompt=serving.LOOP), None, stop)
        asyncio.run(give_up(app, transcriber))
        assert sent[0]["status"] == 503
        assert json.loads(sent[1]["body"])["error"]["code"] == "not_ready"
        transcriber.check_room()
        stop.set()


def test_a_path_cannot_forge_a_log_line(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client.get("/nowhere%0A2026-01-01%20INFO%20-%20all%20is%20well%0D%1B%5B2J")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "wisp"]
    assert line.isprintable()


def test_an_exception_nobody_expected_is_logged_and_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the secret reason")

    with caplog.at_level(logging.ERROR):
        response = TestClient(RequestLog(broken)).get("/", headers={"x-request-id": "r1"})
    assert "secret" not in assert_error(response, 500, "internal_error")
    assert response.headers["x-request-id"] == "r1"
    assert "the secret reason" in caplog.text
