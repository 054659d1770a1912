"""What the public test suites of speaches, vLLM and LocalAI ask, asked of this server: afresh, with real speech.

Their own extensions that have a meaning here are honoured, the others ignored. What contradicts OpenAI is left out:
vLLM's JSON in `text` and chat completions' chunks in a stream, speaches' clips of the upload, LocalAI's cookies.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import soundfile

from service.audio.log_mel import SAMPLE_RATE
from tests.support.bodies import assert_is
from tests.support.serving import engine_for, ready, served, settings_for

SAID = "ask not what your country can do for you"


@pytest.fixture(scope="module")
def client(tiny_en: Path) -> Iterator[openai.OpenAI]:
    with (
        engine_for(settings_for(tiny_en, vad="skip")) as engine,
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
    with pytest.raises(openai.BadRequestError, match="not audio of a known format") as bad:
        hear(client, corrupt)
    assert bad.value.param == "file"
    with pytest.raises(openai.BadRequestError, match="cannot translate"):
        client.post("/audio/translations", body={}, files={"file": jfk}, cast_to=object)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="tiny_en", messages=[])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("i-do-not-exist")
    assert client.models.retrieve("tiny_en").id == "tiny_en"


def test_subtitles_are_numbered_cues_in_order(client: openai.OpenAI, jfk: bytes) -> None:
    srt, vtt = (hear(client, jfk, response_format=response_format) for response_format in ("srt", "vtt"))
    cues = [cue.split("\n", 2) for cue in srt.strip().split("\n\n")]
    assert [number for number, _, _ in cues] == [str(n + 1) for n in range(len(cues))]
    times = [re.fullmatch(r"(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})", time) for _, time, _ in cues]
    spans = [(match[1], match[2]) for match in times if match]
    assert len(spans) == len(cues) and all(start < end for start, end in spans) and spans == sorted(spans)
    assert SAID in plain(" ".join(text for _, _, text in cues).replace("\n", " "))
    assert vtt.startswith("WEBVTT\n\n") and SAID in plain(" ".join(re.sub(r".*-->.*", "", vtt).split()))


def test_segments_are_in_order_and_make_the_text(client: openai.OpenAI, jfk: bytes) -> None:
    answer = hear(client, jfk, response_format="verbose_json", timestamp_granularities=["segment"])
    assert [segment.id for segment in answer.segments] == list(range(len(answer.segments)))
    assert "".join(segment.text for segment in answer.segments).strip() == answer.text
    assert all(segment.start < segment.end for segment in answer.segments) and answer.duration == pytest.approx(11)
    assert all(segment.tokens and 0 <= segment.no_speech_prob <= 1 for segment in answer.segments)


def test_a_prompt_of_any_length_is_taken(client: openai.OpenAI, jfk: bytes) -> None:
    for prompt in ("", "Kennedy, inaugural address", "A long speech about the nation. " * 500, "演説、" * 300):
        assert SAID in plain(hear(client, jfk, prompt=prompt).text)


@pytest.mark.parametrize("name", ["speech.txt", "speech", "speech.mp3", "речь.flac", "a b;c.wav"])
def test_a_files_name_may_be_wrong(client: openai.OpenAI, jfk: bytes, name: str) -> None:
    assert SAID in plain(hear(client, (name, jfk)).text)


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"response_format": "pdf"}, "response_format"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"language": "klingon"}, "language"),
        ({"timestamp_granularities": ["letter"], "response_format": "verbose_json"}, "timestamp_granularities[]"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"stream": True, "response_format": "srt"}, "response_format"),
        ({"include": ["everything"]}, "include[]"),
        ({"file": b""}, "file"),
        ({"file": b"\0" * 4096}, "file"),
        ({"file": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0"}, "file"),
        ({"file": silence(1)[:1000]}, "file"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    client: openai.OpenAI, jfk: bytes, arguments: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.audio.transcriptions.create(**{"file": jfk, "model": "whisper-1", **arguments})
    assert bad.value.param == param and bad.value.type == "invalid_request_error"


def test_an_unknown_model_is_404_and_the_list_says_which_there_are(client: openai.OpenAI, jfk: bytes) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.audio.transcriptions.create(file=jfk, model="nova-2")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    page = client.models.list()
    assert page.object == "list" and page.data[0].id == "tiny_en"
    for model in page.data:
        assert (model.object, type(model.created), model.owned_by) == ("model", int, "wisp")


# vLLM


def test_its_sampling_fields_do_no_harm_and_a_seed_repeats(client: openai.OpenAI, jfk: bytes) -> None:
    create: Any = client.audio.transcriptions.create
    extra = {
        "seed": 42,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.3,
        "max_completion_tokens": 1000,
    }
    said = [
        create(file=jfk, model="whisper-1", temperature=0.8, extra_body=extra | {"seed": seed}).text
        for seed in (42, 42, 43)
    ]
    assert said[0] == said[1] and all(len(text) > 20 for text in said)
    assert create(file=jfk, model="whisper-1", temperature=0, extra_body=extra).text == hear(client, jfk).text


def test_a_beam_search_hears_the_same_sentence(client: openai.OpenAI, jfk: bytes) -> None:
    assert SAID in plain(hear(client, jfk, extra_body={"beam_size": 5, "use_beam_search": True, "n": 1}).text)


def test_its_stream_options_leave_a_stream_as_it_is(client: openai.OpenAI, jfk: bytes) -> None:
    extra = {"stream_include_usage": True, "stream_continuous_usage_stats": True}
    events = list(hear(client, jfk, stream=True, extra_body=extra))
    usage = events[-1].usage
    assert usage.type == "tokens" and usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens == 110 and usage.output_tokens > 20
    assert sum(event.type == "transcript.text.done" for event in events) == 1


def test_a_language_in_capitals_or_by_name_is_one(client: openai.OpenAI, jfk: bytes) -> None:
    for language in ("EN", "en-GB", "eng", "English", ""):
        answer = hear(client, jfk, language=language, response_format="verbose_json")
        assert answer.language == "english" and answer.languages == [{"code": "en"}]


def test_speech_twice_over_is_text_twice_over(client: openai.OpenAI, jfk: bytes) -> None:
    samples, rate = soundfile.read(io.BytesIO(jfk))
    file = io.BytesIO()
    soundfile.write(file, np.concatenate([samples] * 4), rate, format="WAV")
    assert plain(hear(client, file.getvalue()).text).count(SAID) == 4


# speaches


def test_hotwords_and_the_vad_filter_are_honoured(client: openai.OpenAI, jfk: bytes) -> None:
    answer = hear(client, jfk, extra_body={"hotwords": "Americans", "vad_filter": True})
    assert SAID in plain(answer.text)
    assert hear(client, silence(10), extra_body={"vad_filter": True}).text == ""


@pytest.mark.parametrize("granularities", [[], ["segment"], ["word"], ["word", "segment"]])
def test_granularities_say_which_times_there_are(client: openai.OpenAI, jfk: bytes, granularities: list[str]) -> None:
    answer = hear(client, jfk, response_format="verbose_json", timestamp_granularities=granularities)
    assert (answer.words is not None) == ("word" in granularities)
    assert (answer.segments is not None) == (granularities != ["word"])


def test_a_model_is_found_by_its_name_on_the_hub(client: openai.OpenAI, jfk: bytes) -> None:
    for name in ("openai/whisper-tiny.en", "Systran/faster-whisper-tiny.en"):
        assert client.models.retrieve(name).id == name
        assert SAID in plain(client.audio.transcriptions.create(file=jfk, model=name).text)
    assert "whisper-1" in [model.id for model in client.models.list()]


@pytest.mark.parametrize("response_format", ["json", "text", "verbose_json", "srt", "vtt"])
def test_every_format_has_the_words(client: openai.OpenAI, jfk: bytes, response_format: str) -> None:
    answer = hear(client, jfk, response_format=response_format)
    text = answer if isinstance(answer, str) else answer.text
    assert "your country" in text
    if response_format in ("srt", "vtt"):
        assert "-->" in text


# LocalAI


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=xyz", b""),
        (
            "multipart/form-data; boundary=xyz",
            b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--xyz--\r\n',
        ),
    ],
)
def test_a_broken_upload_is_the_clients_fault(client: openai.OpenAI, content_type: str, body: bytes) -> None:
    answer = httpx2.post(f"{client.base_url}audio/transcriptions", content=body, headers={"content-type": content_type})
    assert answer.status_code == 400 and set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_its_fields_are_taken(client: openai.OpenAI, jfk: bytes) -> None:
    answer = hear(client, jfk, extra_body={"diarize": False, "translate": False, "backend": "whisper"})
    assert SAID in plain(answer.text)
    with pytest.raises(openai.BadRequestError, match="cannot translate"):
        hear(client, jfk, extra_body={"translate": True})
