"""The API as clients see it: words for sound in every format, models, request IDs."""

import logging
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.http.app import create_app
from service.settings import Settings
from tests.support import synthetic
from tests.support.serving import PATH, assert_error, engine_for, events, post, ready, settings_for, wav


def test_a_file_alone_gives_its_words(client: TestClient) -> None:
    response = post(client)
    assert response.status_code == 200
    assert response.json() == {
        "text": synthetic.SENTENCE,
        "languages": [{"code": "en"}],
        "usage": {"type": "duration", "seconds": 1},
    }


@pytest.mark.parametrize(
    ("response_format", "media_type", "start"),
    [
        ("json", "application/json", '{"text": "Ask not what"'),
        ("text", "text/plain; charset=utf-8", "Ask not what\n"),
        ("srt", "text/plain; charset=utf-8", "1\n00:00:00,000 --> 00:00:01,000\nAsk not what\n"),
        ("vtt", "text/vtt; charset=utf-8", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nAsk not what\n"),
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
        (3.0, 4.5, " Ask not what"),  # never past the recording's end
    ]
    assert body["text"] == "Ask not what Ask not what"


def test_the_log_has_the_transcription_but_not_its_words(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        post(client, prompt="a secret", language="en")
    assert "transcribed 1.00 s of WAV by synthetic in " in caplog.text
    assert "secret" not in caplog.text and synthetic.SENTENCE not in caplog.text


def test_any_rate_is_heard(client: TestClient) -> None:
    assert post(client, wav(1.0, rate=44_100), response_format="text").text == synthetic.SENTENCE + "\n"


@pytest.mark.parametrize("name", ["tests/speech.wav", "../../etc/passwd", "名前.wav", ""])
def test_a_files_name_means_nothing(client: TestClient, name: str) -> None:
    response = client.post(PATH, files={"file": (name or "x", wav(1.0))})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "synthetic",
        "Synthetic",
        "",
        "whisper",
        "whisper-1",
        "whisper-large-v3-turbo",
        "gpt-transcribe",
        "gpt-4o-transcribe",
        "gpt-4o-mini-transcribe-2025-12-15",
        "gpt-live-transcribe",
        "gpt-realtime-whisper",
        "openai/whisper-1",
        "openai/whisper-tiny.en",
        "Systran/faster-whisper-tiny.en",
        "Systran/faster-synthetic",
        "WHISPER-1",
        "GPT-4o-Transcribe",
        "OpenAI/Whisper-Large-V3",
        "systran/FASTER-Synthetic",
        "None",
    ],
)
def test_the_model_answers_to_its_name_and_aliases(client: TestClient, name: str) -> None:
    assert post(client, model=name).status_code == 200


def test_an_alias_with_a_star_stands_for_many_names(folder: Path) -> None:
    with engine_for(settings_for(folder, aliases="whisper-1,GPT-*-transcribe,My Model")) as engine:
        client = TestClient(create_app(ready(engine)))
        assert post(client, model="my model").status_code == 200
        assert post(client, model="gpt-4o-transcribe").json()["text"] == synthetic.SENTENCE
        assert client.get("/v1/models/gpt-4o-mini-transcribe").status_code == 200
        assert_error(post(client, model="gpt-4o"), 404, "model_not_found", "model")


def test_a_preloaded_model_answers_to_its_name_as_it_was_given(folder: Path) -> None:
    settings = Settings(preload=f"My-Whisper.en:Burn:CPU:{folder / 'model.safetensors'}")
    with engine_for(settings) as engine:
        client = TestClient(create_app(ready(engine)))
        listed, *_ = client.get("/v1/models").json()["data"]
        assert listed["id"] == "My-Whisper.en"
        for name in (listed["id"], "my_whisper_en"):
            assert client.get(f"/v1/models/{name}").status_code == 200
            assert post(client, model=name).status_code == 200


@pytest.mark.parametrize("language", ["", "en", "en-US", "EN", "english", "auto"])
def test_language_is_forgiving(client: TestClient, language: str) -> None:
    assert post(client, language=language).status_code == 200


def test_a_stream_is_deltas_and_one_whole_text(client: TestClient) -> None:
    response = post(client, wav(7.0), stream="true")
    assert response.headers["content-type"].startswith("text/event-stream")
    *deltas, done = events(response.text)
    assert [event["type"] for event in deltas] == ["transcript.text.delta"] * 3
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in deltas) == done["text"] == " ".join([synthetic.SENTENCE] * 3)


# Models and request ids


def test_models_are_listed_and_found(client: TestClient) -> None:
    body = client.get("/v1/models").json()
    model, *others = body["data"]
    assert [other["id"] for other in others if other.get("alias_of") == "synthetic"] == [
        "gpt-live-transcribe",
        "gpt-realtime-whisper",
        "gpt-transcribe",
        "whisper",
        "whisper-1",
    ]
    assert all("shutdown_date" not in entry for entry in body["data"])
    assert body["object"] == "list"
    assert {"id", "object", "created", "owned_by"} <= set(model) and model["languages"] == ["en"]
    assert (model["id"], model["object"]) == ("synthetic", "model") and isinstance(model["created"], int)
    assert client.get("/v1/models/synthetic").json() == model
    assert client.get("/v1/models/whisper-1").json()["id"] == "whisper-1"
    for refusal in (client.get("/v1/models/gpt-5"), post(client, model="gpt-5")):
        assert "synthetic, gpt-*-realtime*, gpt-*-transcribe*, " in assert_error(
            refusal, 404, "model_not_found", "model"
        )
    assert client.get("/v1/models/openai/whisper-1/").json()["id"] == "openai/whisper-1"
    assert_error(client.get("/v1/models/openai/nothing"), 404, "model_not_found", "model")


def test_a_request_id_is_made_or_kept(client: TestClient) -> None:
    made = [client.get("/healthz").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for sent, kept in {"trace-42": True, "a" * 129: False, "a b": False, "": False}.items():
        got = client.get("/nowhere", headers={"x-request-id": sent}).headers["x-request-id"]
        assert (got == sent) == kept and got
