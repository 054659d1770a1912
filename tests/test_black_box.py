"""What the public test suites of speaches and vLLM ask of a server, asked of this one: afresh, with real speech.

Where they ask for their own extensions (beams, seeds, clips of the upload), an OpenAI server has no such field.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile

from service.features import SAMPLE_RATE
from tests.bodies import assert_is
from tests.serving import engine_for, ready, served, settings_for

SAID = "ask not what your country can do for you"


@pytest.fixture(scope="module")
def client(shared: Path) -> Iterator[openai.OpenAI]:
    if not (shared / "models/tiny_en").is_dir():
        pytest.skip("the reference data has no tiny_en")
    with (
        engine_for(settings_for(shared / "models/tiny_en", vad="skip")) as engine,
        served(ready(engine)) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def jfk(shared: Path) -> bytes:
    return (shared / "speech/jfk.flac").read_bytes()


def hear(client: openai.OpenAI, file: Any, **arguments: Any) -> Any:
    create: Any = client.audio.transcriptions.create
    return create(file=file, model="openai/whisper-tiny.en", temperature=0, **arguments)


def plain(text: str) -> str:
    return text.lower().replace(",", "")


def silence(seconds: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(seconds * SAMPLE_RATE, np.int16), SAMPLE_RATE, format="WAV")
    return buffer.getvalue()


def test_text_is_text_and_usage_is_begun_seconds(client: openai.OpenAI, jfk: bytes) -> None:
    assert SAID in plain(hear(client, jfk, response_format="text", language="en"))
    heard = hear(client, jfk, language="en")
    assert SAID in plain(heard.text) and (heard.usage.type, heard.usage.seconds) == ("duration", 11)


def test_a_stream_says_the_same_as_the_answer_in_one(client: openai.OpenAI, jfk: bytes) -> None:
    whole = hear(client, jfk).text
    for response_format in ("json", "text", "verbose_json"):
        events = list(hear(client, jfk, stream=True, response_format=response_format))
        deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
        assert "".join(deltas) == events[-1].text == whole
        assert sum(event.type == "transcript.text.done" for event in events) == 1


def test_words_and_segments_are_timed(client: openai.OpenAI, jfk: bytes) -> None:
    answer = hear(client, jfk, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert_is("VerboseTranscription", answer.model_dump())
    assert plain(" ".join(word.word for word in answer.words)) == plain(answer.text)
    ends = [0.0, *(word.end for word in answer.words)]
    assert all(before <= word.start <= word.end <= 11.1 for before, word in zip(ends, answer.words, strict=False))
    (ask, *_) = (word for word in answer.words if word.word.lower().startswith("ask"))
    assert 3.1 < ask.start < 3.4 < ask.end < 4.0, "after the pause, not over it"
    assert all(segment.avg_logprob < 0 and segment.compression_ratio > 0 for segment in answer.segments)
    assert answer.language == "english"


def test_log_probabilities_tell_how_sure_it_is(client: openai.OpenAI, jfk: bytes) -> None:
    answer = hear(client, jfk, include=["logprobs"])
    assert_is("Transcription", answer.model_dump(exclude_unset=True))
    assert bytes(int(byte) for token in answer.logprobs for byte in token.bytes).decode().strip() == answer.text
    assert -1.0 < np.mean([token.logprob for token in answer.logprobs]) < 0.0


@pytest.mark.parametrize("stream", [False, True])
def test_more_silence_than_a_window_is_no_words(client: openai.OpenAI, stream: bool) -> None:
    """45 s: peers answered it with 500, or with "Thanks for watching"."""
    if stream:
        (event,) = list(hear(client, silence(45), stream=True))
        assert (event.type, event.text) == ("transcript.text.done", "")
        return
    assert hear(client, silence(45)).text == ""
    answer = hear(client, silence(45), response_format="verbose_json")
    assert (answer.text, answer.segments, answer.words) == ("", [], None)


def test_a_long_recording_is_measured_whole(client: openai.OpenAI, shared: Path) -> None:
    samples, rate = soundfile.read(shared / "speech/jfk.wav")
    file = io.BytesIO()
    soundfile.write(file, np.tile(np.pad(samples, (0, 1600)), 3), rate, format="WAV")
    answer = hear(client, file.getvalue(), language="en", response_format="verbose_json")
    assert answer.duration == pytest.approx(33.3) and answer.usage.seconds == 34


def test_a_prompt_is_not_in_the_answer(client: openai.OpenAI, jfk: bytes) -> None:
    answer = hear(client, jfk, prompt="This is a speech, held in Washington.")
    assert "what your country can do for you" in plain(answer.text) and "Washington" not in answer.text


def test_what_is_wrong_is_400_and_what_is_not_there_404(client: openai.OpenAI, jfk: bytes) -> None:
    for arguments in ({"language": "hh"}, {"language": "it"}):
        with pytest.raises(openai.BadRequestError):
            hear(client, jfk, **arguments)
    corrupt = io.BytesIO(b"not a valid audio file")
    corrupt.name = "invalid.wav"
    with pytest.raises(openai.BadRequestError, match="format is not known") as bad:
        hear(client, corrupt)
    assert bad.value.param == "file"
    with pytest.raises(openai.BadRequestError, match="cannot translate"):
        client.post("/audio/translations", body={}, files={"file": jfk}, cast_to=object)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="tiny_en", messages=[])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("i-do-not-exist")
    assert client.models.retrieve("tiny_en").id == "tiny_en"
