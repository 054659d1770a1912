"""POST /v1/audio/translations: English words for any language, if the model knows more than English.

The synthetic multilingual model hears German in everything, and its translations are another text: "what".
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.http.app import create_app
from tests.support import synthetic
from tests.support.serving import assert_error, engine_for, events, post, ready, settings_for, wav

PATH = "/v1/audio/translations"


def served(folder: Path, **further: Any) -> Iterator[TestClient]:
    with engine_for(settings_for(synthetic.save_synthetic(folder, **further))) as engine:
        yield TestClient(create_app(ready(engine)))


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    yield from served(tmp_path_factory.mktemp("models") / "many", multilingual=True)


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    yield from served(tmp_path_factory.mktemp("models") / "tiny_en")


def translate(client: TestClient, **fields: str) -> Any:
    return client.post(PATH, data=fields, files={"file": ("upload", wav(1.0), "application/octet-stream")})


def test_it_is_another_text_than_the_transcript(multilingual: TestClient) -> None:
    assert translate(multilingual).json()["text"] == "what"
    assert post(multilingual).json()["text"] == synthetic.SENTENCE


@pytest.mark.parametrize(
    ("response_format", "media_type", "body"),
    [
        ("text", "text/plain; charset=utf-8", "what\n"),
        ("srt", "text/plain; charset=utf-8", "1\n00:00:00,000 --> 00:00:01,000\nwhat\n"),
        ("vtt", "text/vtt; charset=utf-8", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nwhat\n"),
    ],
)
def test_formats(multilingual: TestClient, response_format: str, media_type: str, body: str) -> None:
    response = translate(multilingual, response_format=response_format, prompt="A film.", temperature="0")
    assert (response.headers["content-type"], response.text) == (media_type, body)


def test_verbose_json_says_that_it_is_a_translation_into_english(multilingual: TestClient) -> None:
    body = translate(multilingual, response_format="verbose_json").json()
    assert (body["task"], body["language"], body["text"]) == ("translate", "english", "what")
    assert [segment["text"] for segment in body["segments"]] == [" what"]
    heard = post(multilingual, response_format="verbose_json").json()
    assert (heard["task"], heard["language"]) == ("transcribe", "german")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"language": "fr"}, "unsupported_value", "language"),
        ({"timestamp_granularities[]": "word"}, "unsupported_value", "timestamp_granularities[]"),
        ({"response_format": "diarized_json"}, "unsupported_value", "response_format"),
        ({"temperature": "2"}, "invalid_value", "temperature"),
    ],
)
def test_fields_are_refused_by_name(multilingual: TestClient, fields: dict[str, str], code: str, param: str) -> None:
    assert_error(translate(multilingual, **fields), 400, code, param)


def test_it_takes_a_language_and_streams(multilingual: TestClient) -> None:
    *deltas, done = events(translate(multilingual, language="de", stream="true").text)
    assert "".join(event["delta"] for event in deltas) == done["text"] == "what"


@pytest.mark.parametrize("fields", [{"task": "translate"}, {"translate": "true"}])
def test_a_transcription_may_ask_for_it(multilingual: TestClient, english: TestClient, fields: Any) -> None:
    assert post(multilingual, **fields).json()["text"] == "what"
    assert_error(post(english, **fields), 400, "unsupported_value", "model")


def test_an_english_model_says_that_it_cannot_before_it_reads_anything(english: TestClient) -> None:
    message = assert_error(translate(english), 400, "unsupported_value", "model")
    assert message == "tiny_en knows English only: it cannot translate."

    def upload() -> Iterator[bytes]:
        yield b"no form"

    response = english.post(PATH, content=upload(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert_error(response, 400, "unsupported_value", "model")


def test_detection_chooses_among_the_languages_that_may_be_spoken(multilingual: TestClient) -> None:
    def heard(*languages: str) -> Any:
        data = {"response_format": "verbose_json", "languages[]": list(languages)}
        return multilingual.post(
            "/v1/audio/transcriptions", data=data, files={"file": ("upload", wav(1.0), "application/octet-stream")}
        )

    assert heard().json()["language"] == heard("en", "de", "fr").json()["language"] == "german"
    assert heard("en").json()["language"] == heard("en", "fr").json()["language"] == "english"
    assert "fr" in assert_error(heard("fr"), 400, "unsupported_value", "languages[]")


def test_models_list_their_languages(multilingual: TestClient, english: TestClient) -> None:
    for client, languages in ((multilingual, {"en", "de"}), (english, {"en"})):
        assert set(json.loads(client.get("/v1/models").text)["data"][0]["languages"]) == languages
