"""Server-sent events: what OpenAI's clients receive as a transcript is made."""

import dataclasses
import json
from typing import Any

from service.errors import NotReady
from service.http.sse import EventStream
from service.transcription.transcriber import Segment, Token, Transcription, Word

WORDS = (Word(" Ask", 0.1, 0.3, 0.9), Word(" not.", 0.3, 0.5, 0.8))
TOKENS = (Token(" Ask", b" Ask", -0.1), Token(" not.", b" not.", -0.2))
FIRST = Segment(0, 0, 0.0, 2.0, " Ask not.", (5, 6), 0.0, -0.25, 1.1, 0.01, WORDS, TOKENS)
EMPTY = dataclasses.replace(FIRST, id=1, start=2.0, end=2.0, text="", tokens=(), words=(), logprobs=())
LAST = dataclasses.replace(FIRST, id=2, start=2.0, end=4.0, text=" \u2028Why?")
RESULT = Transcription("Ask not. \u2028Why?", "en", 4.2, (FIRST, EMPTY, LAST))


def events(stream: EventStream) -> list[dict[str, Any]]:
    body = b"".join([*(stream.segment(segment) for segment in RESULT.segments), stream.done(RESULT)])
    assert body.isascii() and body.endswith(b"\n\n")
    frames = body.decode().removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def test_deltas_joined_are_the_text_of_the_last_event() -> None:
    *deltas, done = events(EventStream())
    assert [set(event) for event in deltas] == [{"type", "delta", "segment_id"}] * 2
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert "".join(event["delta"] for event in deltas) == done["text"] == RESULT.text
    assert done == {
        "type": "transcript.text.done",
        "text": RESULT.text,
        "languages": [{"code": "en"}],
        "usage": {
            "type": "tokens",
            "input_tokens": 42,
            "input_token_details": {"audio_tokens": 42, "text_tokens": 0},
            "output_tokens": 4,
            "total_tokens": 46,
        },
    }


def test_log_probabilities_come_with_each_delta_and_all_at_the_end() -> None:
    first, last, done = events(EventStream(logprobs=True))
    assert [token["token"] for token in first["logprobs"]] == [" Ask", " not."]
    assert first["logprobs"] + last["logprobs"] == done["logprobs"]


def test_verbose_json_has_an_event_for_each_segment_and_a_summary_at_the_end() -> None:
    delta, segment, _, last, done = events(EventStream("verbose_json"))
    assert (delta["type"], segment["type"]) == ("transcript.text.delta", "transcript.text.segment")
    numbers = {"id", "seek", "start", "end", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob"}
    assert set(segment) == {"type", "text", "tokens"} | numbers
    assert (segment["start"], segment["end"], segment["text"]) == (0.0, 2.0, " Ask not.")
    assert (segment["id"], last["id"]) == ("seg_0", "seg_2"), "what has no words is left out"
    assert delta["segment_id"] == segment["id"]
    assert (done["task"], done["language"], done["duration"], done["text"]) == (
        "transcribe",
        "english",
        4.2,
        RESULT.text,
    )


def test_segment_events_have_their_words_on_request() -> None:
    _, segment, *_ = events(EventStream("verbose_json", ("segment", "word")))
    assert segment["words"] == [{"word": "Ask", "start": 0.1, "end": 0.3}, {"word": "not.", "start": 0.3, "end": 0.5}]


def test_a_failure_is_the_envelope() -> None:
    frame = EventStream.error(NotReady("The server is stopping."))
    assert json.loads(frame.decode().removeprefix("data: "))["error"]["code"] == "not_ready"
