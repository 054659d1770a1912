"""Whisper base on speech in five languages, against openai/whisper's own answers (tests/speech/README.md)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.audio.decode import decode
from service.transcription.transcriber import Options, Transcriber
from tests.conftest import ROOT
from tests.support.serving import engine_for, settings_for

SPEECH = ROOT / "tests" / "speech"
ANSWERS = [json.loads(line) for line in (SPEECH / "base.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def transcriber(base: Path) -> Iterator[Transcriber]:
    with engine_for(settings_for(base)) as engine:
        yield engine.load()


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: f"{answer['file']} {answer['options']}")
def test_language_tokens_and_text_are_openai_whispers(transcriber: Transcriber, answer: dict[str, Any]) -> None:
    with (SPEECH / answer["file"]).open("rb") as file:
        result = transcriber.transcribe(decode(file), Options(temperature=(0.0,), **answer["options"]))
    assert result.language == answer["language"]
    assert [token for segment in result.segments for token in segment.tokens] == answer["tokens"]
    assert result.text == answer["text"].strip()


def test_a_language_among_those_that_were_given_is_detected(transcriber: Transcriber) -> None:
    """Russian that the model takes for Polish is Russian where only Russian or German may be spoken."""
    with (SPEECH / "ru.flac").open("rb") as file:
        result = transcriber.transcribe(decode(file), Options(temperature=(0.0,), languages=("de", "ru")))
    assert result.language == "ru"
