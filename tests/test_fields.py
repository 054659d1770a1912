"""The form's fields: each honoured, or refused under the name it was sent by."""

from typing import Any

import pytest

from service.chunking import Chunking
from service.errors import InvalidValue, MissingField, ModelNotFound, RequestError, UnknownField, UnsupportedValue
from service.fields import Fields
from service.form_table import MAX_KEYWORDS, TRANSCRIPTION, TRANSLATION, Field
from service.transcriber import TEMPERATURES, Options


def fields_of(*fields: tuple[str, str], table: tuple[Field, ...] = TRANSCRIPTION, **further: Any) -> Fields:
    parsed = Fields(lambda name: name in ("tiny_en", "whisper-1"), ["tiny_en", "whisper-1"], table=table, **further)
    for name, text in fields:
        parsed(name, text)
    return parsed


def parse(*fields: tuple[str, str], table: tuple[Field, ...] = TRANSCRIPTION) -> Options:
    return fields_of(*fields, table=table).finish()


def test_defaults_are_openais() -> None:
    fields = fields_of()
    assert (fields.response_format, fields.stream, fields.granularities) == ("json", False, ())
    assert fields.finish() == Options()


def test_known_fields_are_honoured() -> None:
    fields = fields_of(
        ("model", "whisper-1"),
        ("language", "en-US"),
        ("prompt", " Wisp, WGSL"),
        ("response_format", "verbose_json"),
        ("temperature", "0.5"),
        ("timestamp_granularities[]", "segment"),
        ("stream", "false"),
    )
    options = fields.finish()
    assert (options.language, options.prompt, options.temperature) == ("en", " Wisp, WGSL", (0.5,))
    assert fields.response_format == "verbose_json"


def test_temperature_0_is_whispers_ladder() -> None:
    assert parse().temperature == TEMPERATURES == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert parse(("temperature", "0")).temperature == TEMPERATURES


@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities"])
def test_words_are_timed_where_they_are_asked_for(name: str) -> None:
    assert not parse(("response_format", "verbose_json")).word_timestamps
    fields = fields_of((name, "word"), ("response_format", "verbose_json"))
    assert fields.finish().word_timestamps and fields.granularities == ("word",)


@pytest.mark.parametrize("name", ["include[]", "include"])
def test_log_probabilities_are_given_where_they_are_asked_for(name: str) -> None:
    assert not parse().logprobs
    assert parse((name, "logprobs"), ("stream", "true"), ("response_format", "json")).logprobs


def test_lists_keep_all_their_values() -> None:
    assert parse(("keywords[]", "Wisp"), ("keywords[]", " lavapipe ")).keywords == ("Wisp", "lavapipe")
    assert parse(("languages[]", "en"), ("languages[]", "German")).languages == ("en", "de")
    parse(("timestamp_granularities[]", "segment"), ("timestamp_granularities[]", "segment"))


@pytest.mark.parametrize("text", ["true", "True", "1"])
def test_booleans_are_read_as_clients_write_them(text: str) -> None:
    assert fields_of(("stream", text)).stream


@pytest.mark.parametrize(
    ("fields", "chunking"),
    [
        ([("chunking_strategy", "auto")], Chunking()),
        ([("chunking_strategy[type]", "server_vad")], Chunking(0.5, 300, 200)),
        (
            [
                ("chunking_strategy[prefix_padding_ms]", "100"),
                ("chunking_strategy[silence_duration_ms]", "500"),
                ("chunking_strategy[threshold]", "0.25"),
                ("chunking_strategy[type]", "server_vad"),
            ],
            Chunking(0.25, 100, 500),
        ),
        ([("chunking_strategy", '{"type": "server_vad", "threshold": 1}')], Chunking(threshold=1.0)),
        ([("chunking_strategy", '{"type": "server_vad", "silence_duration_ms": 10.0}')], Chunking(0.5, 300, 10)),
    ],
)
def test_a_chunking_strategy_comes_as_a_word_in_parts_or_in_json(
    fields: list[tuple[str, str]], chunking: Chunking
) -> None:
    assert parse().chunking is None
    assert parse(*fields).chunking == chunking


@pytest.mark.parametrize("field", [field for field in TRANSCRIPTION if field.kind != "binary"], ids=lambda f: f.name)
def test_an_empty_value_is_an_unset_one(field: Field) -> None:
    assert parse((field.wire_name, "")) == parse((field.name, " ")) == parse()


def test_a_strategy_that_is_none_is_told_every_one_there_is() -> None:
    with pytest.raises(UnsupportedValue, match=r"one of auto, chunking_strategy\[type\]=server_vad\."):
        parse(("chunking_strategy", "manual"))


@pytest.mark.parametrize(
    ("name", "text", "error", "param"),
    [
        ("model", "gpt-5", ModelNotFound, "model"),
        ("language", "klingon", InvalidValue, "language"),
        ("languages[]", "klingon", InvalidValue, "languages[]"),
        ("response_format", "diarized_json", UnsupportedValue, "response_format"),
        ("response_format", "JSON", UnsupportedValue, "response_format"),
        ("temperature", "hot", InvalidValue, "temperature"),
        ("temperature", "1.01", InvalidValue, "temperature"),
        ("temperature", "-0.1", InvalidValue, "temperature"),
        ("temperature", "nan", InvalidValue, "temperature"),
        ("timestamp_granularities[]", "word", UnsupportedValue, "timestamp_granularities[]"),
        ("timestamp_granularities", "word", UnsupportedValue, "timestamp_granularities"),
        ("timestamp_granularities[]", "letter", UnsupportedValue, "timestamp_granularities[]"),
        ("include[]", "everything", UnsupportedValue, "include[]"),
        ("chunking_strategy", "manual", UnsupportedValue, "chunking_strategy"),
        ("chunking_strategy", "{", InvalidValue, "chunking_strategy"),
        ("chunking_strategy", "{" * 60_000, InvalidValue, "chunking_strategy"),
        ("chunking_strategy", "{}", MissingField, "chunking_strategy"),
        ("chunking_strategy", '{"type": "server_vad", "colour": 1}', InvalidValue, "chunking_strategy"),
        ("chunking_strategy", '{"type": "server_vad", "threshold": true}', InvalidValue, "chunking_strategy"),
        ("chunking_strategy", '{"type": "server_vad", "threshold": "0.5"}', InvalidValue, "chunking_strategy"),
        ("chunking_strategy", '{"type": "server_vad", "threshold": NaN}', InvalidValue, "chunking_strategy"),
        ("chunking_strategy", '{"type": 1}', InvalidValue, "chunking_strategy"),
        ("chunking_strategy", '{"\\ud800": 1}', InvalidValue, "chunking_strategy"),
        ("chunking_strategy", '{"type": "\\ud800"}', UnsupportedValue, "chunking_strategy"),
        ("chunking_strategy[type]", "semantic_vad", UnsupportedValue, "chunking_strategy[type]"),
        ("chunking_strategy[threshold]", "1.5", InvalidValue, "chunking_strategy[threshold]"),
        ("chunking_strategy[threshold]", "0.5", MissingField, "chunking_strategy[type]"),
        ("chunking_strategy[prefix_padding_ms]", "1.5", InvalidValue, "chunking_strategy[prefix_padding_ms]"),
        ("chunking_strategy[silence_duration_ms]", "-1", InvalidValue, "chunking_strategy[silence_duration_ms]"),
        ("chunking_strategy[colour]", "red", UnknownField, "chunking_strategy[colour]"),
        ("chunking_strategy[type", "server_vad", UnknownField, "chunking_strategy[type"),
        ("known_speaker_names[]", "Ann", UnsupportedValue, "known_speaker_names[]"),
        ("known_speaker_references[]", "data:", UnsupportedValue, "known_speaker_references[]"),
        ("stream", "maybe", InvalidValue, "stream"),
        ("models", "tiny_en", UnknownField, "models"),
        ("model[]", "tiny_en", UnknownField, "model[]"),
        ("file[]", "x", UnknownField, "file[]"),
        ("", "", UnknownField, ""),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    name: str, text: str, error: type[RequestError], param: str
) -> None:
    with pytest.raises(error) as raised:
        parse((name, text))
    assert raised.value.param == param and 400 <= raised.value.status < 500
    assert len(str(raised.value)) < 300, "an error does not repeat a client's value by the kilobyte"
    assert str(raised.value).encode(), "a client reads it: it can be sent"


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(InvalidValue, match="twice") as raised:
        parse(("language", "en"), ("language", "de"))
    assert raised.value.param == "language"


@pytest.mark.parametrize("whole_first", [True, False])
def test_a_chunking_strategy_is_a_whole_or_parts(whole_first: bool) -> None:
    fields = [("chunking_strategy", "auto"), ("chunking_strategy[type]", "server_vad")]
    with pytest.raises(InvalidValue, match="one of the two"):
        parse(*(fields if whole_first else fields[::-1]))


def test_no_more_keywords_than_a_prompt_can_hold() -> None:
    parse(*[("keywords[]", "word")] * MAX_KEYWORDS)
    with pytest.raises(InvalidValue) as raised:
        parse(*[("keywords[]", "word")] * (MAX_KEYWORDS + 1))
    assert raised.value.param == "keywords[]"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([("stream", "true"), ("response_format", "srt")], "response_format"),
        ([("stream", "true"), ("response_format", "vtt")], "response_format"),
        ([("timestamp_granularities[]", "word"), ("response_format", "srt")], "timestamp_granularities[]"),
        ([("include[]", "logprobs"), ("response_format", "verbose_json")], "include[]"),
        ([("include", "logprobs"), ("response_format", "text")], "include"),
    ],
)
@pytest.mark.parametrize("turned", [True, False])
def test_a_contradiction_is_found_with_the_second_field_in_either_order(
    fields: list[tuple[str, str]], param: str, turned: bool
) -> None:
    with pytest.raises(UnsupportedValue) as raised:
        fields_of(*(fields[::-1] if turned else fields))
    assert raised.value.param == param


def test_what_the_model_does_not_know_is_refused_with_its_field() -> None:
    def check(options: Options) -> None:
        if options.language == "de":
            raise UnsupportedValue("English only.", param="language")

    fields = fields_of(check=check)
    with pytest.raises(UnsupportedValue):
        fields("language", "de")


def test_a_translation_has_fields_of_its_own() -> None:
    options = fields_of(("prompt", "x"), ("temperature", "1"), table=TRANSLATION, task="translate").finish()
    assert (options.task, options.prompt, options.temperature) == ("translate", "x", (1.0,))
    for name in ("language", "stream", "timestamp_granularities[]", "include[]", "chunking_strategy", "keywords[]"):
        with pytest.raises(UnknownField) as raised:
            parse((name, "en"), table=TRANSLATION)
        assert raised.value.param == name
