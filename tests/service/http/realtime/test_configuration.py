"""A session's configuration: merging, both forms, what is honoured, what is accepted in silence, what is an error."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import InvalidValue, WispError
from service.http.realtime.audio import Format
from service.http.realtime.configuration import Configuration
from service.transcription.chunking import Chunking

TURNS = "session.audio.input.turn_detection"
OPENAIS = Chunking(threshold=0.5, prefix_padding_ms=300, silence_duration_ms=500)

# The same examples on every run, however slow the machine.
unhurried = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def heard(**parts: Any) -> dict[str, Any]:
    return {"type": "transcription", "audio": {"input": parts}}


def test_a_session_begins_with_openais_defaults() -> None:
    shown = Configuration().shown("tiny.en")
    assert shown == {
        "type": "transcription",
        "object": "realtime.transcription_session",
        "include": [],
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "tiny.en"},
                "noise_reduction": None,
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.5,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 500,
                },
            }
        },
    }
    assert Configuration().cutting == OPENAIS


@pytest.mark.parametrize(
    ("sent", "format"),
    [
        ({"type": "audio/pcm", "rate": 24000}, Format("audio/pcm", 24000)),
        ({"type": "audio/pcm"}, Format("audio/pcm", 24000)),
        ({"type": "audio/pcm", "rate": 16000}, Format("audio/pcm", 16000)),
        ({"type": "audio/pcmu"}, Format("audio/pcmu", 8000)),
        ({"type": "audio/pcma", "rate": 8000}, Format("audio/pcma", 8000)),
        ("pcm16", Format("audio/pcm", 24000)),
        ("g711_ulaw", Format("audio/pcmu", 8000)),
        ("g711_alaw", Format("audio/pcma", 8000)),
        (None, Format("audio/pcm", 24000)),
    ],
)
def test_formats(sent: Any, format: Format) -> None:
    assert Configuration().updated(heard(format=sent)).format == format
    if isinstance(sent, str):
        assert Configuration().updated({"input_audio_format": sent}).format == format


def test_the_betas_flat_form_means_the_same() -> None:
    flat = {
        "input_audio_format": "g711_ulaw",
        "input_audio_transcription": {"model": "whisper-1", "language": "en", "prompt": "Hm."},
        "turn_detection": {"type": "server_vad", "threshold": 0.7},
        "input_audio_noise_reduction": {"type": "near_field"},
        "include": ["item.input_audio_transcription.logprobs"],
    }
    nested = heard(
        format={"type": "audio/pcmu"},
        transcription=flat["input_audio_transcription"],
        turn_detection=flat["turn_detection"],
        noise_reduction=flat["input_audio_noise_reduction"],
    ) | {"include": flat["include"]}
    configuration = Configuration().updated(flat)
    assert configuration == Configuration().updated(nested)
    shown = configuration.shown_flat("tiny.en")
    assert {name: shown[name] for name in ("input_audio_format", "include")} == {
        name: flat[name] for name in ("input_audio_format", "include")
    }
    assert configuration.options.logprobs and configuration.cutting == Chunking(0.7, 300, 500)


@pytest.mark.parametrize(
    ("turns", "cutting"),
    [
        (None, None),
        ({"type": "server_vad"}, OPENAIS),
        ({"type": "server_vad", "silence_duration_ms": 200, "threshold": None}, Chunking(0.5, 300, 200)),
        (
            {"type": "server_vad", "create_response": True, "interrupt_response": False, "idle_timeout_ms": 6000},
            OPENAIS,
        ),
        ({"type": "semantic_vad"}, Chunking(0.5, 300, 1000)),
        ({"type": "semantic_vad", "eagerness": "high"}, Chunking(0.5, 300, 500)),
        ({"type": "semantic_vad", "eagerness": "low", "create_response": True}, Chunking(0.5, 300, 2000)),
    ],
)
def test_turn_detection(turns: Any, cutting: Chunking | None) -> None:
    assert Configuration().updated(heard(turn_detection=turns)).cutting == cutting


@pytest.mark.parametrize("model", ["gpt-live-transcribe", "gpt-realtime-whisper", "openai/GPT-Realtime-Whisper"])
def test_models_whose_clients_commit_themselves_have_no_turn_detection_unless_asked(model: str) -> None:
    chosen = Configuration().updated(heard(transcription={"model": model}))
    assert chosen.cutting is None and chosen.shown("x")["audio"]["input"]["turn_detection"] is None
    assert chosen.updated(heard(turn_detection={"type": "server_vad"})).cutting == OPENAIS
    assert chosen.updated(heard(transcription={"model": "whisper-1"})).cutting == OPENAIS


def test_an_update_merges_and_null_clears() -> None:
    first = Configuration().updated(heard(transcription={"model": "whisper-1", "language": "en", "keywords": ["Wisp"]}))
    second = first.updated(heard(transcription={"prompt": "Hello."}, turn_detection={"type": "server_vad"}))
    assert (second.model, second.options.prompt, second.options.keywords) == ("whisper-1", "Hello.", ("Wisp",))
    third = second.updated(heard(transcription={"language": None}, turn_detection={"threshold": 0.9}))
    assert third.language is None and third.options.prompt == "Hello." and third.cutting == Chunking(0.9, 300, 500)
    fourth = third.updated(heard(transcription=None, turn_detection=None))
    assert fourth.options == Configuration().options and fourth.cutting is None
    assert third.updated(heard(turn_detection={"type": "semantic_vad"})).cutting == Chunking(0.5, 300, 1000)


def test_what_cannot_be_honoured_is_accepted() -> None:
    sent = heard(
        noise_reduction={"type": "far_field", "strength": 0.5, "odd": [1]},
        transcription={"model": "gpt-realtime-whisper", "delay": "low", "speakers": 3},
        echo=True,
    ) | {"tools": [], "instructions": "Be brief.", "include": ["item.colour"]}
    shown = Configuration().updated(sent).shown("x")
    assert shown["audio"]["input"]["noise_reduction"] == {"type": "far_field", "strength": 0.5}
    assert shown["audio"]["input"]["transcription"] == {"model": "gpt-realtime-whisper", "delay": "low"}
    assert shown["include"] == ["item.colour"]


def test_languages_have_many_spellings() -> None:
    options = Configuration().updated(heard(transcription={"language": "en-US", "languages": ["de", "French"]})).options
    assert (options.language, options.languages) == ("en", ("de", "fr"))
    assert Configuration().updated(heard(transcription={"language": "auto"})).language is None
    assert Configuration().updated(heard(transcription={"languages": [], "keywords": []})).options.keywords == ()


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ([], "session"),
        ("x", "session"),
        ({"audio": []}, "session.audio"),
        ({"audio": {"input": 1}}, "session.audio.input"),
        (heard(format="mp3"), "session.audio.input.format"),
        (heard(format={"type": 3}), "session.audio.input.format.type"),
        (heard(format={"type": "audio/pcm", "rate": 4000}), "session.audio.input.format.rate"),
        (heard(format={"type": "audio/pcm", "rate": True}), "session.audio.input.format.rate"),
        (heard(transcription=[]), "session.audio.input.transcription"),
        (heard(transcription={"model": 1}), "session.audio.input.transcription.model"),
        (heard(transcription={"language": "klingon"}), "session.audio.input.transcription.language"),
        (heard(transcription={"languages": ["en", "xx"]}), "session.audio.input.transcription.languages"),
        (heard(transcription={"languages": [1]}), "session.audio.input.transcription.languages"),
        (heard(transcription={"keywords": ["a"] * 33}), "session.audio.input.transcription.keywords"),
        (heard(transcription={"prompt": {}}), "session.audio.input.transcription.prompt"),
        (heard(turn_detection={"type": "psychic_vad"}), "session.audio.input.turn_detection.type"),
        (heard(turn_detection={"type": "server_vad", "threshold": 2}), "session.audio.input.turn_detection.threshold"),
        (
            heard(turn_detection={"type": "server_vad", "threshold": True}),
            "session.audio.input.turn_detection.threshold",
        ),
        (
            heard(turn_detection={"type": "semantic_vad", "eagerness": "x"}),
            "session.audio.input.turn_detection.eagerness",
        ),
        ({"include": 3}, "session.include"),
        ({"include": ["item.colour"] * 17}, "session.include"),
    ],
)
def test_an_impossible_value_is_named(session: Any, param: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        Configuration().updated(session)
    assert raised.value.param == param and raised.value.message.endswith(".")


LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 50_000) | st.floats(0, 1) | st.sampled_from(["en", "", "semantic_vad"])
)
PARTS = {
    "format": st.none() | st.sampled_from(["pcm16", "g711_ulaw"]) | st.just({"type": "audio/pcm", "rate": 16000}),
    "transcription": st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            "model": st.none() | st.sampled_from(["whisper-1", "gpt-live-transcribe"]),
            "language": st.none() | st.sampled_from(["en", "de", "auto"]),
            "prompt": st.none() | st.text(max_size=5),
            "keywords": st.none() | st.lists(st.text(min_size=1, max_size=3), max_size=3),
        },
    ),
    "turn_detection": st.none()
    | st.fixed_dictionaries(
        {"type": st.just("server_vad")}, optional={"threshold": st.none() | st.sampled_from([0.1, 0.9])}
    )
    | st.just({"type": "semantic_vad", "eagerness": "low"}),
    "noise_reduction": st.none() | st.just({"type": "near_field"}),
}
UPDATES = st.fixed_dictionaries({}, optional=PARTS)
NAMES = st.sampled_from(["format", "transcription", "turn_detection", "noise_reduction", "type", "model", "rate"])
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner), max_leaves=8)


@unhurried
@given(st.lists(UPDATES, max_size=4), UPDATES)
def test_what_an_update_does_not_name_stays_and_repeating_it_changes_nothing(before: list[Any], update: Any) -> None:
    old = Configuration()
    for parts in before:
        old = old.updated(heard(**parts))
    new = old.updated(heard(**update))
    assert new.updated(heard(**update)) == new
    assert new.updated({}) == new and old.updated(heard()) == old
    shown, was = new.shown("x")["audio"]["input"], old.shown("x")["audio"]["input"]
    for name in PARTS.keys() - update.keys() - {"turn_detection"}:
        assert shown[name] == was[name]
    if "turn_detection" not in update and old.detects_turns is not None:
        assert shown["turn_detection"] == was["turn_detection"]
    for name, value in update.items():
        if value is None and name in ("turn_detection", "noise_reduction"):
            assert shown[name] is None


@unhurried
@given(UPDATES, UPDATES)
def test_updates_of_different_parts_commute(first: Any, second: Any) -> None:
    second = {name: value for name, value in second.items() if name not in first}
    both = Configuration().updated(heard(**first)).updated(heard(**second))
    assert both == Configuration().updated(heard(**second)).updated(heard(**first))
    assert both == Configuration().updated(heard(**first, **second))


@unhurried
@given(UPDATES)
def test_what_a_session_shows_can_be_sent_back(update: Any) -> None:
    configuration = Configuration().updated(heard(**update))
    again = Configuration().updated(configuration.shown(configuration.model or "whisper-1"))
    assert again.shown("x")["audio"]["input"] | {"transcription": 0} == configuration.shown("x")["audio"]["input"] | {
        "transcription": 0
    }
    assert again.options == configuration.options and again.cutting == configuration.cutting


@unhurried
@given(ANYTHING)
def test_any_json_is_merged_or_refused(session: Any) -> None:
    for sent in (
        session,
        {"audio": session},
        heard(format=session),
        heard(transcription=session),
        heard(turn_detection=session),
    ):
        try:
            configuration = Configuration().updated(sent)
        except WispError as error:
            assert error.status == 400
        else:
            configuration.shown("x")
            configuration.shown_flat("x")
            assert configuration.cutting is None or configuration.cutting.silence_duration_ms >= 0
