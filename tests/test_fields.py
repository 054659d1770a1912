"""The form's fields: each honoured, or refused under the name it was sent by."""

import pytest

from service.errors import InvalidValue, ModelNotFound, RequestError, UnknownField, UnsupportedValue
from service.fields import TranscriptionFields
from service.transcriber import TEMPERATURES


def parse(*fields: tuple[str, str]) -> TranscriptionFields:
    parsed = TranscriptionFields(lambda name: name in ("tiny_en", "whisper-1"), ["tiny_en", "whisper-1"])
    for name, text in fields:
        parsed(name, text)
    parsed.finish()
    return parsed


def test_defaults_are_openais() -> None:
    parsed = parse()
    assert (parsed.response_format, parsed.temperature, parsed.language, parsed.stream) == ("json", 0.0, None, False)


def test_known_fields_are_honoured() -> None:
    parsed = parse(
        ("model", "whisper-1"),
        ("language", "en-US"),
        ("prompt", " Wisp, WGSL"),
        ("response_format", "verbose_json"),
        ("temperature", "0.5"),
        ("timestamp_granularities[]", "segment"),
        ("stream", "false"),
    )
    options = parsed.finish()
    assert (options.language, options.prompt, options.temperature) == ("en", " Wisp, WGSL", (0.5,))
    assert parsed.response_format == "verbose_json"


def test_temperature_0_is_whispers_ladder() -> None:
    assert parse().finish().temperature == TEMPERATURES == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert parse(("temperature", "0")).finish().temperature == TEMPERATURES


@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities"])
def test_words_are_timed_where_they_are_asked_for(name: str) -> None:
    assert not parse(("response_format", "verbose_json")).finish().word_timestamps
    parsed = parse((name, "word"), ("response_format", "verbose_json"))
    assert parsed.finish().word_timestamps and set(parsed.granularities) == {"word"}


def test_keywords_are_all_kept() -> None:
    assert parse(("keywords[]", "Wisp"), ("keywords[]", " lavapipe ")).finish().keywords == ("Wisp", "lavapipe")


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "language",
        "prompt",
        "response_format",
        "temperature",
        "stream",
        "timestamp_granularities[]",
        "include[]",
        "chunking_strategy",
        "known_speaker_names",
    ],
)
def test_an_empty_value_is_an_unset_one(name: str) -> None:
    assert parse((name, "")).finish() == parse().finish()


@pytest.mark.parametrize(
    ("name", "text", "error", "param"),
    [
        ("model", "gpt-5", ModelNotFound, "model"),
        ("language", "klingon", InvalidValue, "language"),
        ("response_format", "diarized_json", UnsupportedValue, "response_format"),
        ("response_format", "JSON", UnsupportedValue, "response_format"),
        ("temperature", "hot", InvalidValue, "temperature"),
        ("temperature", "1.01", InvalidValue, "temperature"),
        ("temperature", "-0.1", InvalidValue, "temperature"),
        ("temperature", "nan", InvalidValue, "temperature"),
        ("timestamp_granularities[]", "word", UnsupportedValue, "timestamp_granularities[]"),
        ("timestamp_granularities", "word", UnsupportedValue, "timestamp_granularities"),
        ("timestamp_granularities[]", "letter", InvalidValue, "timestamp_granularities[]"),
        ("include[]", "logprobs", UnsupportedValue, "include[]"),
        ("chunking_strategy", "auto", UnsupportedValue, "chunking_strategy"),
        ("chunking_strategy[type]", "server_vad", UnsupportedValue, "chunking_strategy[type]"),
        ("known_speaker_names[]", "Ann", UnsupportedValue, "known_speaker_names[]"),
        ("stream", "maybe", InvalidValue, "stream"),
        ("models", "tiny_en", UnknownField, "models"),
        ("model[]", "tiny_en", UnknownField, "model[]"),
        ("", "", UnknownField, ""),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    name: str, text: str, error: type[RequestError], param: str
) -> None:
    with pytest.raises(error) as raised:
        parse((name, text))
    assert raised.value.param == param and 400 <= raised.value.status < 500


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(InvalidValue, match="twice") as raised:
        parse(("language", "en"), ("language", "de"))
    assert raised.value.param == "language"


def test_lists_may_have_several_values() -> None:
    parse(("timestamp_granularities[]", "segment"), ("timestamp_granularities[]", "segment"))


@pytest.mark.parametrize("response_format", ["verbose_json", "srt", "vtt"])
@pytest.mark.parametrize("stream_first", [True, False])
def test_a_stream_of_anything_but_text_is_refused_in_either_order(response_format: str, stream_first: bool) -> None:
    fields = [("stream", "true"), ("response_format", response_format)]
    with pytest.raises(UnsupportedValue) as raised:
        parse(*(fields if stream_first else fields[::-1]))
    assert raised.value.param == "response_format"
