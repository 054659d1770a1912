"""The form's fields: each honoured, or refused under the name it was sent by."""

from typing import Any

import pytest

from service.errors import InvalidValue, MissingField, ModelNotFound, RequestError, UnknownField, UnsupportedValue
from service.http.form.fields import Fields
from service.http.form.table import EXTRAS, FIELDS, MAX_KEYWORDS, Field
from service.transcription.chunking import Chunking
from service.transcription.transcriber import TEMPERATURES, Options


def fields_of(*fields: tuple[str, str], **further: Any) -> Fields:
    def take(name: str) -> None:
        if name not in ("tiny_en", "whisper-1"):
            raise ModelNotFound(name, ["tiny_en", "whisper-1"])

    parsed = Fields(take, **further)
    for name, text in fields:
        parsed(name, text)
    return parsed


def parse(*fields: tuple[str, str], **further: Any) -> Options:
    return fields_of(*fields, **further).finish()


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
def test_words_are_timed_on_request(name: str) -> None:
    assert not parse(("response_format", "verbose_json")).word_timestamps
    fields = fields_of((name, "word"), ("response_format", "verbose_json"))
    assert fields.finish().word_timestamps and fields.granularities == ("word",)


@pytest.mark.parametrize("name", ["include[]", "include"])
def test_log_probabilities_are_given_on_request(name: str) -> None:
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


@pytest.mark.parametrize("field", [field for field in FIELDS if field.kind != "binary"], ids=lambda f: f.name)
def test_an_empty_value_is_an_unset_one(field: Field) -> None:
    assert parse((field.wire_name, "")) == parse((field.name, " ")) == parse()


@pytest.mark.parametrize("text", ["None", "none", "null", "NULL", "undefined", '""', "''", " null "])
def test_a_null_of_any_language_is_an_unset_value(text: str) -> None:
    """Python's str(None), JavaScript's String(undefined) and the like, in all fields, of other servers' APIs too."""
    for field in (*FIELDS, *EXTRAS):
        if field.kind != "binary":
            for name in (field.wire_name, field.name):
                parsed = fields_of((name, text))
                assert parsed.finish() == Options() and not parsed.warning, name
                assert (parsed.response_format, parsed.stream, parsed.granularities) == ("json", False, ()), name
    assert parse(("chunking_strategy[type]", "server_vad"), ("chunking_strategy[threshold]", text)).chunking


def test_nulls_in_lists_and_objects_are_left_out() -> None:
    fields = fields_of(("timestamp_granularities", '["word", null]'), ("response_format", "verbose_json"))
    assert fields.granularities == ("word",)
    assert parse(("languages", "[null]"), ("languages[]", "None"), ("languages[]", "auto")).languages == ()
    assert parse(("languages", "en,null")).languages == ("en",)
    assert parse(("keywords[]", '["null", "Wisp"]')).keywords == ("null", "Wisp"), "a term is any word"
    chunking = '{"type": "server_vad", "threshold": null, "prefix_padding_ms": 100}'
    assert parse(("chunking_strategy", chunking)).chunking == Chunking(prefix_padding_ms=100)


def test_an_error_for_an_unknown_strategy_lists_all() -> None:
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
        ("known_speaker_names[]", "Ann", UnsupportedValue, "known_speaker_names[]"),
        ("known_speaker_references[]", "data:", UnsupportedValue, "known_speaker_references[]"),
        ("stream", "maybe", InvalidValue, "stream"),
    ],
)
def test_unsupported_values_are_refused_by_name(name: str, text: str, error: type[RequestError], param: str) -> None:
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
    with pytest.raises(InvalidValue, match="both as a whole and in parts"):
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
        ([("include[]", "logprobs"), ("response_format", "srt")], "include[]"),
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


def test_values_that_the_model_lacks_are_refused_with_their_field() -> None:
    def check(options: Options) -> None:
        if options.language == "de":
            raise UnsupportedValue("English only.", param="language")

    fields = fields_of(check=check)
    with pytest.raises(UnsupportedValue):
        fields("language", "de")


def test_a_translation_has_the_same_fields() -> None:
    options = fields_of(("prompt", "x"), ("language", "de"), ("stream", "true"), task="translate").finish()
    assert (options.task, options.prompt, options.language) == ("translate", "x", "de")


# Lists


@pytest.mark.parametrize(
    "fields",
    [
        [("timestamp_granularities[]", "segment"), ("timestamp_granularities[]", "word")],
        [("timestamp_granularities", "segment"), ("timestamp_granularities", "word")],
        [("timestamp_granularities[0]", "segment"), ("timestamp_granularities[1]", "word")],
        [("timestamp_granularities[]", '["segment", "word"]')],
        [("timestamp_granularities", ' ["segment","word"]')],
        [("timestamp_granularities", "['segment', 'word']")],
        [("timestamp_granularities", "segment,word")],
        [("timestamp_granularities[]", "segment, word,")],
    ],
)
def test_a_list_comes_in_every_form_that_clients_write(fields: list[tuple[str, str]]) -> None:
    parsed = fields_of(*fields, ("response_format", "verbose_json"))
    assert parsed.granularities == ("segment", "word") and parsed.finish().word_timestamps


def test_every_list_has_the_same_forms() -> None:
    assert parse(("include[0]", "logprobs")).logprobs and parse(("include", '["logprobs"]')).logprobs
    assert parse(("languages", "eng, de")).languages == ("en", "de")
    assert parse(("languages[3]", '["en", "German"]')).languages == ("en", "de")
    assert parse(("keywords", "Wisp, lavapipe")).keywords == ("Wisp", "lavapipe")
    assert parse(("keywords[0]", '["Wisp", "a, b"]')).keywords == ("Wisp", "a, b")
    assert parse(("keywords[]", "Washington, D.C.")).keywords == ("Washington, D.C.",)
    assert parse(("keywords[]", "[sic")).keywords == ("[sic",)


# Fields that OpenAI's API does not have


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ([("hotwords", "Wisp, WGSL")], Options(keywords=("Wisp, WGSL",))),
        ([("hotwords", '["Wisp", "WGSL"]'), ("keywords[]", "GPU")], Options(keywords=("GPU", "Wisp, WGSL"))),
        ([("vad_filter", "true")], Options(chunking=Chunking())),
        ([("vad_filter", "False")], Options(uncut=True)),
        ([("vad_filter", "false"), ("chunking_strategy", "auto")], Options(uncut=True, chunking=Chunking())),
        ([("vad_filter", "true"), ("chunking_strategy[type]", "server_vad")], Options(chunking=Chunking())),
        ([("beam_size", "5")], Options(beam_size=5)),
        ([("without_timestamps", "true")], Options(without_timestamps=True)),
        ([("no_timestamps", "1")], Options(without_timestamps=True)),
        ([("seed", "42")], Options(seed=42)),
        ([("task", "transcribe"), ("translate", "false")], Options()),
        ([("task", "translate")], Options(task="translate")),
        ([("translate", "true")], Options(task="translate")),
        ([("initial_prompt", "A film.")], Options(prompt="A film.")),
        ([("initial_prompt", "A film."), ("prompt", "A book.")], Options(prompt="A book.")),
        ([("temperature_inc", "0.4")], Options(temperature=(0.0, 0.4, 0.8))),
        ([("temperature_inc", "0.2")], Options()),
        ([("temperature_inc", "0")], Options(temperature=(0.0,))),
        ([("temperature", "0.5"), ("temperature_inc", "0.5")], Options(temperature=(0.5, 1.0))),
        ([("temperature_inc", "0.05")], Options(temperature=tuple(n / 20 for n in range(21)))),
        ([("word_timestamps", "true")], Options()),
        ([("word_timestamps", "true"), ("response_format", "verbose_json")], Options(word_timestamps=True)),
        ([("beam_size", ""), ("hotwords", " "), ("vad_filter", "")], Options()),
    ],
)
def test_what_other_servers_fields_mean_here(fields: list[tuple[str, str]], options: Options) -> None:
    parsed = fields_of(*fields)
    assert parsed.finish() == options and not parsed.warning


def test_words_that_are_timed_by_another_name_leave_the_segments() -> None:
    parsed = fields_of(("word_timestamps", "true"), ("response_format", "verbose_json"))
    assert parsed.granularities == ("segment", "word")


@pytest.mark.parametrize(
    "name",
    ["models", "model[]", "file[]", "chunking_strategy[colour]", "chunking_strategy[type", "user", "top_p", "diarize"],
)
def test_an_unknown_field_is_ignored_with_a_warning_or_refused(name: str) -> None:
    parsed = fields_of((name, "1"), ("model", "tiny_en"), (name, "2"))
    assert parsed.finish() == Options() and parsed.warning == f"ignored fields: {name}" and not parsed.knows(name)
    with pytest.raises(UnknownField) as raised:
        parse((name, "1"), refuses_unknown=True)
    assert raised.value.param == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("beam_size", "17"),
        ("beam_size", "many"),
        ("temperature_inc", "0.01"),
        ("temperature_inc", "nan"),
        ("task", "sing"),
        ("vad_filter", "perhaps"),
        ("seed", "-1"),
    ],
)
def test_a_value_of_another_servers_field_that_cannot_be_used_is_ignored_with_a_warning(name: str, text: str) -> None:
    parsed = fields_of((name, text))
    assert parsed.knows(name) and parsed.finish() == Options() and parsed.warning == f"ignored fields: {name}"
    with pytest.raises(UnknownField):
        parse((name, text), refuses_unknown=True)


def test_a_warning_is_short_and_holds_nothing_that_ends_a_line() -> None:
    names = ["", "a\r\nSet-Cookie: x", "naïve", "\0", "b" * 5000, *(f"field{n}" for n in range(50))]
    warning = fields_of(*((name, "x" * 1000) for name in names)).warning
    assert warning.startswith("ignored fields: (no name), a??Set-Cookie??x, na?ve, ?, " + "b" * 40 + ", field0")
    assert warning.endswith(f" and {len(names) - 8} more") and len(warning) < 500
    assert warning.isascii() and warning.isprintable()


# Fields of the address


def test_fields_of_the_body_win_over_those_of_the_address() -> None:
    address = fields_of(("language", "de"), ("keywords[]", "Wisp"), ("prompt", "A film."), ("colour", "red"))
    parsed = fields_of(("language", "en"), ("keywords[]", "WGSL"), defaults=address)
    options = parsed.finish()
    assert (options.language, options.keywords, options.prompt) == ("en", ("WGSL",), "A film.")
    assert parsed.warning == "ignored fields: colour"
    assert address.options().keywords == ("Wisp",)


def test_an_object_may_come_in_parts_in_the_address() -> None:
    address = fields_of(("chunking_strategy[type]", "server_vad"), ("chunking_strategy[threshold]", "0.25"))
    address.fold()
    assert fields_of(defaults=address).finish().chunking == Chunking(threshold=0.25)
    assert fields_of(("chunking_strategy", "auto"), defaults=address).finish().chunking == Chunking()


def test_a_contradiction_with_the_address_is_refused() -> None:
    with pytest.raises(UnsupportedValue) as raised:
        fields_of(("response_format", "srt"), defaults=fields_of(("include[]", "logprobs")))
    assert raised.value.param == "include[]"
