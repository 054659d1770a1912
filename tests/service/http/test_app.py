"""The service as a whole: it loads, becomes ready and understands speech."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from starlette.testclient import TestClient

from service.audio.decode import SAMPLE_RATE
from service.http.app import create_app
from tests.support.serving import assert_error, engine_for, events, post, ready, settings_for

DEAD_GUEST = '(module (memory (export "memory") 1) (func $heart (export "_start") unreachable))'


def test_health_is_immediate_and_readiness_follows_an_inference(folder: Path) -> None:
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


def test_a_failed_load_is_reported_to_waiting_requests(folder: Path) -> None:
    with engine_for(settings_for(folder), guest="no guest at all") as engine:
        client = TestClient(create_app(ready(engine)))
        assert_error(client.get("/readyz"), 503, "not_ready")
        message = assert_error(post(client), 503, "not_ready")
        assert "guest" not in message, "the reason belongs into the log"


# Real speech


@pytest.fixture(scope="module")
def tiny_en(shared: Path) -> Iterator[TestClient]:
    with engine_for(settings_for(shared / "models" / "tiny_en")) as engine, TestClient(create_app(engine)) as client:
        yield client


def test_silence_gives_no_words_and_no_error(tiny_en: TestClient) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, [0.0] * 5 * SAMPLE_RATE, SAMPLE_RATE, format="WAV")
    assert post(tiny_en, buffer.getvalue()).json()["text"] == ""
    assert post(tiny_en, buffer.getvalue(), response_format="srt").text == ""
    assert [e["type"] for e in events(post(tiny_en, buffer.getvalue(), stream="true").text)] == ["transcript.text.done"]


@pytest.mark.parametrize("name", ["jfk.wav", "jfk.flac", "jfk.mp3"])
def test_jfk_is_understood(tiny_en: TestClient, shared: Path, name: str) -> None:
    text = post(tiny_en, (shared / "speech" / name).read_bytes()).json()["text"]
    assert "ask not what your country can do for you" in text.lower().replace(",", "")
