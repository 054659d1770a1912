"""`include[]=logprobs` through the whole service: each token of the text, its bytes, its log-probability."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.http.app import create_app
from service.transcription.transcriber import Options, Transcriber
from tests.support import synthetic
from tests.support.serving import assert_error, engine_for, events, post, ready, settings_for, tone_audio, wav

INCLUDE: dict[str, Any] = {"include[]": "logprobs"}


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    folder: Path = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")
    with engine_for(settings_for(folder)) as engine:
        yield engine.load()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")
    with engine_for(settings_for(folder)) as engine:
        yield TestClient(create_app(ready(engine)))


def test_each_token_of_the_text_has_its_log_probability(client: TestClient) -> None:
    body = post(client, wav(4.0), **INCLUDE).json()
    assert [token["token"] for token in body["logprobs"]] == [*synthetic.WORDS, *synthetic.WORDS]
    assert all(bytes(token["bytes"]).decode() == token["token"] for token in body["logprobs"])
    assert "".join(token["token"] for token in body["logprobs"]).strip() == body["text"]
    assert all(-0.1 < token["logprob"] <= 0 for token in body["logprobs"]), "the synthetic model is certain"


def test_verbose_json_has_them_too(client: TestClient) -> None:
    body = post(client, wav(4.0), response_format="verbose_json", **INCLUDE).json()
    assert [token["token"] for token in body["logprobs"]] == [*synthetic.WORDS, *synthetic.WORDS]


def test_they_are_there_only_on_request(client: TestClient) -> None:
    assert "logprobs" not in post(client).json()
    assert all("logprobs" not in event for event in events(post(client, stream="true").text))
    for response_format in ("text", "srt", "vtt"):
        refusal = post(client, response_format=response_format, **INCLUDE)
        assert_error(refusal, 400, "unsupported_value", "include[]")


def test_a_stream_has_them_with_each_delta_and_all_at_the_end(client: TestClient) -> None:
    *deltas, done = events(post(client, wav(4.0), stream="true", **INCLUDE).text)
    assert len(deltas) == 2
    assert [token["token"] for token in deltas[0]["logprobs"]] == [*synthetic.WORDS]
    assert [token for delta in deltas for token in delta["logprobs"]] == done["logprobs"]


def test_they_belong_to_the_average_of_their_segment(transcriber: Transcriber) -> None:
    """avg_logprob is the mean over the window's text, timestamps and end: of these, the text's are the segment's."""
    (segment,) = transcriber.transcribe(tone_audio(1.0), Options(logprobs=True)).segments
    tokens = [token.logprob for token in segment.logprobs]
    n_sampled = len(segment.tokens) + 1
    assert math.isclose(segment.avg_logprob * n_sampled, sum(tokens), abs_tol=0.2)
    assert sum(tokens) >= segment.avg_logprob * n_sampled - 1e-6, "no part is less likely than the whole"
