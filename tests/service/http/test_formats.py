"""Response bodies: what OpenAI's clients, subtitle players and event readers need."""

import dataclasses
import json

import pytest

from service.http import formats
from service.transcription.transcriber import Segment, Token, Transcription, Word


def segment(number: int, start: float, end: float, text: str) -> Segment:
    return Segment(number, 0, start, end, text, (50_363, 383, 50_463), 0.0, -0.25, 1.1, 0.01)


SPOKEN = Transcription(
    "Ask not <b>what</b> & why --> how.",
    "en",
    4000.2,
    (segment(0, 0.0, 2.5, " Ask not <b>what</b>"), segment(1, 2.5, 3661.5, " & why --> how.")),
)
SILENT = Transcription("", "en", 3.0, ())
WORDLESS = Transcription("", "en", 3.0, (segment(0, 0.0, 0.02, ""),))  # Whisper's output for five seconds of zeros


def test_json_is_the_text_and_begun_seconds() -> None:
    assert json.loads(formats.render(SPOKEN, "json")) == {
        "text": SPOKEN.text,
        "languages": [{"code": "en"}],
        "usage": {"type": "duration", "seconds": 4001},
    }


def test_text_is_the_text_and_a_newline() -> None:
    assert formats.render(SPOKEN, "text") == SPOKEN.text + "\n"


def test_verbose_json_has_every_key_openai_requires() -> None:
    body = json.loads(formats.render(SPOKEN, "verbose_json"))
    assert (body["task"], body["language"], body["duration"], body["text"]) == (
        "transcribe",
        "english",
        4000.2,
        SPOKEN.text,
    )
    assert [s["id"] for s in body["segments"]] == [0, 1]
    numbers = {"id", "seek", "start", "end", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob"}
    for item in body["segments"]:
        assert set(item) == numbers | {"text", "tokens"}
        assert all(isinstance(item[key], int | float) for key in numbers)
    assert body["segments"][0]["text"] == " Ask not <b>what</b>"
    assert "words" not in body
    assert body["languages"] == [{"code": "en"}]


@pytest.mark.parametrize(
    ("granularities", "keys"),
    [
        ((), {"segments"}),
        (("segment",), {"segments"}),
        (("word",), {"words"}),
        (("word", "segment"), {"words", "segments"}),
    ],
)
def test_verbose_json_has_the_requested_times(granularities: tuple[str, ...], keys: set[str]) -> None:
    words = (Word(" Ask", 0.1, 0.30049, 0.9), Word(" not.", 0.3, 0.5, 0.8))
    result = Transcription(
        "Ask not.", "en", 1.0, (dataclasses.replace(segment(0, 0.1, 0.5, " Ask not."), words=words),)
    )
    body = json.loads(formats.render(result, "verbose_json", granularities))
    assert {"segments", "words"} & set(body) == keys
    if "words" in keys:
        assert body["words"] == [
            {"word": "Ask", "start": 0.1, "end": 0.3},
            {"word": "not.", "start": 0.3, "end": 0.5},
        ]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([" A", " grown", "-up", "'s", " U", ".S.", " plan"], ["A", "grown-up's", "U.S.", "plan"]),
        ([" 10", ",000", "%", " of", " and", "/or"], ["10,000%", "of", "and/or"]),
        (["你", "好，", "世界"], ["你", "好，", "世界"]),
        (["-up", " “Ask", "”"], ["-up", "“Ask", "”"]),
        ([" a", "", " ", "b"], ["a", "b"]),
    ],
)
def test_words_are_those_of_the_text(pieces: list[str], words: list[str]) -> None:
    """openai/whisper ends a word before punctuation: joined with spaces, its pieces would not be the text."""
    timed = tuple(Word(piece, float(n), n + 0.5, 0.9) for n, piece in enumerate(pieces))
    one = dataclasses.replace(segment(0, 0.0, 9.0, "".join(pieces)), words=timed)
    body = json.loads(formats.render(Transcription(one.text, "en", 9.0, (one,)), "verbose_json", ("word",)))
    assert [word["word"] for word in body["words"]] == words
    assert body["words"][0]["start"] == 0.0
    if pieces[1] == " grown":
        assert (body["words"][1]["start"], body["words"][1]["end"]) == (1.0, 3.5)


@pytest.mark.parametrize(
    ("seconds", "stamp"),
    [
        (0.0, "00:00:00,000"),
        (0.9995, "00:00:01,000"),
        (59.9996, "00:01:00,000"),
        (3599.9999, "01:00:00,000"),
        (4505.0, "01:15:05,000"),
        (360_000.0, "100:00:00,000"),
        (-0.5, "00:00:00,000"),
    ],
)
def test_timestamps_carry_their_rounding(seconds: float, stamp: str) -> None:
    assert formats.timestamp(seconds, ",") == stamp


def test_srt_numbers_its_cues_and_keeps_arrows_out_of_the_text() -> None:
    assert formats.render(SPOKEN, "srt") == (
        "1\n00:00:00,000 --> 00:00:02,500\nAsk not <b>what</b>\n\n2\n00:00:02,500 --> 01:01:01,500\n& why -> how.\n"
    )


def test_vtt_escapes_tags_and_entities() -> None:
    assert formats.render(SPOKEN, "vtt") == (
        "WEBVTT\n"
        "\n"
        "00:00:00.000 --> 00:00:02.500\nAsk not &lt;b>what&lt;/b>\n"
        "\n"
        "00:00:02.500 --> 01:01:01.500\n&amp; why -> how.\n"
    )


def test_a_cue_that_begins_within_the_recording_ends_within_it() -> None:
    """A player would wait for a later end, and a file with both would be longer. verbose_json is openai/whisper's."""
    result = Transcription("a b", "en", 3.5004, (segment(0, 1.0, 4.02, " a"), segment(1, 3.52, 4.02, " b")))
    assert formats.render(result, "srt") == (
        "1\n00:00:01,000 --> 00:00:03,500\na\n\n2\n00:00:03,520 --> 00:00:04,020\nb\n"
    )
    assert "00:00:01.000 --> 00:00:03.500\na\n" in formats.render(result, "vtt")
    assert [item["end"] for item in json.loads(formats.render(result, "verbose_json"))["segments"]] == [4.02, 4.02]


@pytest.mark.parametrize("silence", [SILENT, WORDLESS])
def test_silence_is_an_empty_subtitle_file(silence: Transcription) -> None:
    assert formats.render(silence, "srt") == ""
    assert formats.render(silence, "vtt") == "WEBVTT\n"
    assert formats.render(silence, "text") == "\n"
    assert json.loads(formats.render(silence, "verbose_json"))["segments"] == []


@pytest.mark.parametrize("text", ["a\n\nb", "a\r\n2\r\n00:00:00,000 --> 00:00:09,000", "--->", "---->"])
def test_a_cue_cannot_be_broken_out_of(text: str) -> None:
    one = Transcription(text, "en", 1.0, (segment(0, 0.0, 1.0, text),))
    for body in (formats.render(one, "srt"), formats.render(one, "vtt")):
        assert body.count("-->") == 1
        assert "\n\n" not in body.strip().removeprefix("WEBVTT\n\n")


def test_no_format_is_served_as_html() -> None:
    assert not any("html" in media_type for media_type in formats.MEDIA_TYPES.values())


def test_a_translation_is_english_whatever_was_spoken() -> None:
    result = dataclasses.replace(SPOKEN, language="de", task="translate")
    body = json.loads(formats.render(result, "verbose_json"))
    assert (body["task"], body["language"]) == ("translate", "english")


def test_json_has_log_probabilities_on_request() -> None:
    tokens = (Token(" na", b" na", -0.5), Token("\ufffd", b"\xc3", -0.25), Token("\ufffd", b"\xaf", -0.125))
    result = Transcription("naï", "en", 1.0, (dataclasses.replace(segment(0, 0, 1, " naï"), logprobs=tokens),))
    assert "logprobs" not in json.loads(formats.render(result, "json"))
    logprobs = json.loads(formats.render(result, "json", logprobs=True))["logprobs"]
    assert json.loads(formats.render(result, "verbose_json", logprobs=True))["logprobs"] == logprobs
    assert logprobs == [
        {"token": " na", "logprob": -0.5, "bytes": [32, 110, 97]},
        {"token": "\ufffd", "logprob": -0.25, "bytes": [0xC3]},
        {"token": "\ufffd", "logprob": -0.125, "bytes": [0xAF]},
    ]
    assert bytes(byte for token in logprobs for byte in token["bytes"]).decode().strip() == result.text
    assert json.loads(formats.render(SILENT, "json", logprobs=True))["logprobs"] == []
