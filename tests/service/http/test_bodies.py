"""Every body of every format with every option matches /openapi.json: of speech, of silence, of errors."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.http.app import create_app
from service.http.formats import FORMATS
from tests.support import synthetic
from tests.support.bodies import assert_answer, assert_is
from tests.support.serving import PATH, engine_for, post, ready, settings_for, wav

TRANSLATIONS = "/v1/audio/translations"
GRANULARITIES: tuple[tuple[str, ...], ...] = ((), ("segment",), ("word",), ("segment", "word"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "both", multilingual=True)
    with engine_for(settings_for(folder)) as engine:
        yield TestClient(create_app(ready(engine)))


def send(client: TestClient, path: str = PATH, file: bytes = wav(3.5), **fields: Any) -> Any:
    return client.post(path, data=fields, files={"file": ("upload", file, "application/octet-stream")})


@pytest.mark.parametrize("path", [PATH, TRANSLATIONS])
@pytest.mark.parametrize("response_format", FORMATS)
@pytest.mark.parametrize("temperature", ["0", "0.7"])
def test_every_format(client: TestClient, path: str, response_format: str, temperature: str) -> None:
    response = send(client, path, response_format=response_format, temperature=temperature, prompt="A film.")
    assert_answer(response, response_format)


@pytest.mark.parametrize("granularities", GRANULARITIES)
@pytest.mark.parametrize("stream", [False, True])
def test_verbose_json_has_the_requested_parts(client: TestClient, granularities: tuple[str, ...], stream: bool) -> None:
    fields: dict[str, Any] = {"response_format": "verbose_json", "timestamp_granularities[]": list(granularities)}
    answer = assert_answer(send(client, stream=str(stream), **fields), "verbose_json", stream=stream)
    if stream:
        # Without attention, as in the synthetic model, no word has a length, and there is no segment.
        segments = [event for event in answer if event["type"] == "transcript.text.segment"]
        assert all("words" not in segment for segment in segments) and bool(segments) == ("word" not in granularities)
        assert (answer[-1]["task"], answer[-1]["language"]) == ("transcribe", "german")
    else:
        assert ("words" in answer) == ("word" in granularities)
        assert ("segments" in answer) == (granularities != ("word",))


@pytest.mark.parametrize(("stream", "logprobs", "chunking"), list(itertools.product([False, True], repeat=3)))
def test_json_with_every_option(client: TestClient, stream: bool, logprobs: bool, chunking: bool) -> None:
    fields: dict[str, Any] = {"include[]": ["logprobs"]} if logprobs else {}
    if chunking:
        fields |= {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0"}
    answer = assert_answer(send(client, stream=str(stream), **fields), stream=stream)
    for body in answer if stream else [answer]:
        assert ("logprobs" in body) == logprobs
    assert (answer[-1] if stream else answer)["text"] == "Ask not what Ask not what"


@pytest.mark.parametrize(
    ("response_format", "stream"), [(name, False) for name in FORMATS] + [("json", True), ("verbose_json", True)]
)
def test_every_format_of_silence(client: TestClient, response_format: str, stream: bool) -> None:
    fields: dict[str, Any] = {"response_format": response_format, "stream": str(stream), "chunking_strategy": "auto"}
    answer = assert_answer(send(client, **fields), response_format, stream=stream)
    if response_format in ("json", "verbose_json"):
        assert (answer[-1] if stream else answer)["text"] == ""
    else:
        assert answer == {"text": "\n", "srt": "", "vtt": "WEBVTT\n"}[response_format]


def test_every_other_body(client: TestClient) -> None:
    assert_is("ModelList", client.get("/v1/models").json())
    assert_is("Model", client.get("/v1/models/whisper-1").json())
    for path in ("/healthz", "/readyz"):
        assert_is("Health", client.get(path).json())
    refusals = (
        post(client, b"no sound"),
        post(client, temperature="hot"),
        client.get("/v1/models/none"),
        client.get("/none"),
        client.get(PATH),
        client.post(TRANSLATIONS),
    )
    for refusal in refusals:
        assert refusal.status_code >= 400
        assert_is("Error", refusal.json())
