"""The service as a whole: it loads, proves itself, serves OpenAI's client through a socket and understands speech."""

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import soundfile
import uvicorn
from starlette.testclient import TestClient

from service.app import Engine, create_app
from service.audio import SAMPLE_RATE
from tests import synthetic
from tests.serving import assert_error, engine_for, events, post, ready, settings_for, wav

DEAD_GUEST = '(module (memory (export "memory") 1) (func $heart (export "_start") unreachable))'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")


def test_health_is_told_at_once_and_readiness_after_an_inference(folder: Path) -> None:
    with engine_for(settings_for(folder)) as engine:
        client = TestClient(create_app(engine))
        assert client.get("/healthz").json() == {"status": "ok"}
        assert_error(client.get("/readyz"), 503, "not_ready")
        ready(engine)
        assert client.get("/readyz").json() == {"status": "ready", "model": "synthetic"}


def test_a_guest_that_cannot_infer_is_never_ready(folder: Path) -> None:
    with engine_for(settings_for(folder), guest=DEAD_GUEST) as engine:
        client = TestClient(create_app(ready(engine)))
        assert_error(client.get("/readyz"), 503, "not_ready")
        assert client.get("/healthz").status_code == 200


def test_a_model_that_fails_to_load_is_told_to_those_who_wait_for_it(folder: Path) -> None:
    with engine_for(settings_for(folder), guest="no guest at all") as engine:
        client = TestClient(create_app(ready(engine)))
        assert_error(client.get("/readyz"), 503, "not_ready")
        message = assert_error(post(client), 503, "not_ready")
        assert "guest" not in message, "the reason belongs into the log"


# Through a socket, as the OpenAI client speaks


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """A real server on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(engine), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def test_the_openai_client_works_unchanged(folder: Path) -> None:
    with (
        engine_for(settings_for(folder, max_upload_bytes=2_000_000)) as engine,
        served(engine) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as api,
    ):
        create: Any = api.audio.transcriptions.create
        assert create(file=wav(1.0), model="whisper-1").text == synthetic.SENTENCE
        verbose = create(file=wav(4.0), model="whisper-1", response_format="verbose_json", language="en")
        assert (verbose.language, verbose.duration, len(verbose.segments)) == ("english", 4.0, 2)
        assert create(file=wav(1.0), model="whisper-1", response_format="srt").startswith("1\n00:00:00,000 --> ")
        assert create(file=("a.wav", wav(1.0)), model="whisper-1", response_format="text") == synthetic.SENTENCE + "\n"
        stream = list(create(file=wav(4.0), model="whisper-1", stream=True))
        assert [event.type for event in stream] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
        assert stream[-1].text == "Ask not what Ask not what"
        assert [model.id for model in api.models.list()] == ["synthetic"]
        with pytest.raises(openai.BadRequestError) as bad:
            create(file=b"no sound at all", model="whisper-1")
        assert (bad.value.code, bad.value.param) == ("unreadable_audio", "file") and bad.value.request_id
        with pytest.raises(openai.NotFoundError):
            create(file=wav(1.0), model="gpt-5")
        with pytest.raises(openai.APIStatusError) as large:
            create(file=b"x" * 8_000_000, model="whisper-1")
        assert (large.value.status_code, large.value.code) == (413, "upload_too_large")


# Real speech


@pytest.fixture(scope="module")
def tiny_en(shared: Path) -> Iterator[TestClient]:
    with engine_for(settings_for(shared / "models" / "tiny_en")) as engine, TestClient(create_app(engine)) as client:
        yield client


def test_silence_is_no_words_and_no_error(tiny_en: TestClient) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, [0.0] * 5 * SAMPLE_RATE, SAMPLE_RATE, format="WAV")
    assert post(tiny_en, buffer.getvalue()).json()["text"] == ""
    assert post(tiny_en, buffer.getvalue(), response_format="srt").text == ""
    assert [e["type"] for e in events(post(tiny_en, buffer.getvalue(), stream="true").text)] == ["transcript.text.done"]


@pytest.mark.parametrize("name", ["jfk.wav", "jfk.flac", "jfk.mp3"])
def test_jfk_is_understood(tiny_en: TestClient, shared: Path, name: str) -> None:
    text = post(tiny_en, (shared / "speech" / name).read_bytes()).json()["text"]
    assert "ask not what your country can do for you" in text.lower().replace(",", "")
