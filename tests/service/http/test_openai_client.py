"""OpenAI's Python client through a socket: every format with every option, sync and async."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support import synthetic
from tests.support.serving import engine_for, ready, served, settings_for, wav

SENTENCES = " ".join([synthetic.SENTENCE] * 2)
SOUND = wav(4.0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "both", multilingual=True)
    with engine_for(settings_for(folder, max_upload_bytes=2_000_000)) as engine, served(ready(engine)) as url:
        yield url


class Sync:
    """The synchronous client; streams as lists of events."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, task: str, **arguments: Any) -> Any:
        with openai.OpenAI(base_url=self.url, api_key="none", max_retries=0) as client:
            create: Any = getattr(client.audio, task).create
            answer = create(**arguments)
            return list(answer) if arguments.get("stream") else answer


class Async(Sync):
    """The asynchronous client, made to look synchronous."""

    def __call__(self, task: str, **arguments: Any) -> Any:
        return asyncio.run(self._call(task, **arguments))

    async def _call(self, task: str, **arguments: Any) -> Any:
        async with openai.AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0) as client:
            create: Any = getattr(client.audio, task).create
            answer = await create(**arguments)
            return [event async for event in answer] if arguments.get("stream") else answer


@pytest.fixture(params=[Sync, Async])
def call(request: pytest.FixtureRequest, url: str) -> Any:
    return request.param(url)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI has no model for translations any more
@pytest.mark.parametrize("task", ["transcriptions", "translations"])
@pytest.mark.parametrize("response_format", ["json", "text", "srt", "vtt", "verbose_json"])
def test_every_format(call: Any, task: str, response_format: str) -> None:
    said = "what what" if task == "translations" else SENTENCES
    answer = call(task, file=SOUND, model="whisper-1", response_format=response_format, prompt="A film.", temperature=0)
    match response_format:
        case "json":
            assert answer.text == said
        case "text":
            assert answer == said + "\n"
        case "srt":
            assert answer.startswith("1\n00:00:00,000 --> ") and answer.count(" --> ") == 2
        case "vtt":
            assert answer.startswith("WEBVTT\n\n00:00:00.000 --> ") and answer.count(" --> ") == 2
        case "verbose_json":
            assert (answer.text, answer.duration, len(answer.segments)) == (said, 4.0, 2)
            assert answer.language == ("english" if task == "translations" else "german")
            assert answer.segments[1].start == 3.0 and isinstance(answer.segments[1].avg_logprob, float)


@pytest.mark.parametrize("granularities", [["segment"], ["word"], ["segment", "word"]])
def test_granularities(call: Any, granularities: list[str]) -> None:
    answer = call(
        "transcriptions",
        file=SOUND,
        model="whisper-1",
        response_format="verbose_json",
        timestamp_granularities=granularities,
    )
    assert (answer.segments is not None) == ("segment" in granularities)
    assert (answer.words is not None) == ("word" in granularities)


@pytest.mark.parametrize("response_format", [openai.omit, "json", "text", "verbose_json"])
@pytest.mark.parametrize("include", [openai.omit, ["logprobs"]])
def test_streams(call: Any, response_format: Any, include: Any) -> None:
    arguments = {"file": SOUND, "model": "whisper-1", "stream": True, "response_format": response_format}
    if include is not openai.omit and response_format == "text":
        with pytest.raises(openai.BadRequestError) as refused:
            call("transcriptions", **arguments, include=include)
        assert refused.value.param == "include[]"
        return
    events = call("transcriptions", **arguments, include=include)
    deltas = [event for event in events if event.type == "transcript.text.delta"]
    assert [event.type for event in events].count("transcript.text.done") == 1
    assert "".join(event.delta for event in deltas) == events[-1].text == SENTENCES
    if include is not openai.omit:
        assert [token.token for delta in deltas for token in delta.logprobs] == [*synthetic.WORDS] * 2
        assert [token.bytes for token in events[-1].logprobs] == [list(word.encode()) for word in synthetic.WORDS] * 2


@pytest.mark.parametrize(
    "chunking",
    ["auto", {"type": "server_vad", "threshold": 0.9, "prefix_padding_ms": 0, "silence_duration_ms": 500}],
)
def test_everything_else_that_the_client_can_send(call: Any, chunking: Any) -> None:
    answer = call(
        "transcriptions",
        file=("a tone.wav", io.BytesIO(SOUND), "audio/wav"),
        model="whisper-1",
        chunking_strategy=chunking,
        include=["logprobs"],
        keywords=["Wisp", "lavapipe"],
        languages=["en", "de"],
        temperature=0.2,
        stream=False,
    )
    assert (answer.text, answer.logprobs, answer.usage.type, answer.usage.seconds) == ("", [], "duration", 4)
    heard = call("transcriptions", file=SOUND, model="whisper-1", language="en", keywords=["Wisp"])
    assert heard.text == SENTENCES


@pytest.mark.parametrize(
    ("arguments", "error", "param"),
    [
        ({"file": b"no sound at all"}, openai.BadRequestError, "file"),
        ({"model": "gpt-5"}, openai.NotFoundError, "model"),
        ({"language": "klingon"}, openai.BadRequestError, "language"),
        ({"language": "fr"}, openai.BadRequestError, "language"),
        ({"response_format": "diarized_json"}, openai.BadRequestError, "response_format"),
        ({"timestamp_granularities": ["word"]}, openai.BadRequestError, "timestamp_granularities[]"),
        ({"known_speaker_names": ["Ann"]}, openai.BadRequestError, "known_speaker_names[]"),
        ({"chunking_strategy": {"type": "server_vad", "threshold": 2}}, openai.BadRequestError, None),
        ({"temperature": 1.5, "stream": True}, openai.BadRequestError, "temperature"),
    ],
)
def test_refusals_are_the_clients_own_errors(
    call: Any, arguments: dict[str, Any], error: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(error) as refused:
        call("transcriptions", **{"file": SOUND, "model": "whisper-1"} | arguments)
    assert refused.value.param == (param or "chunking_strategy[threshold]")
    assert refused.value.request_id and refused.value.code


def test_a_refusal_reaches_a_client_that_is_still_sending(call: Any) -> None:
    """The field is rejected, or the cap reached, with megabytes of the file still to come."""
    large = b"x" * 8_000_000
    with pytest.raises(openai.APIStatusError) as refused:
        call("transcriptions", file=large, model="whisper-1")
    assert (refused.value.status_code, refused.value.code) == (413, "upload_too_large")
    with pytest.raises(openai.BadRequestError) as bad:
        call("transcriptions", file=large[:2_000_000], model="whisper-1", temperature=7)
    assert bad.value.param == "temperature"


def test_models(url: str, tmp_path: Path) -> None:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()][:2] == ["both", "gpt-live-transcribe"]
        assert client.models.retrieve("whisper-1").id == "whisper-1"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("i-do-not-exist")
        file = tmp_path / "sound.wav"
        file.write_bytes(SOUND)
        with client.audio.transcriptions.with_streaming_response.create(file=file, model="both") as response:
            assert response.headers["x-request-id"] and synthetic.SENTENCE in response.read().decode()
