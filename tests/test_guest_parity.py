"""The guest on the CPU target against openai/whisper's own output, for every file in `../shared/expected`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from service.features import N_SAMPLES, SAMPLE_RATE, log_mel_frames, log_mel_spectrogram
from service.guest import Guest
from service.models import Model, ModelSpec, load_model

WASM = Path(__file__).resolve().parent.parent / "assets" / "guest.wasm"
DEADLINE_S = 600.0  # no test should reach it
TOLERANCE = 1e-3  # of log-probabilities and probabilities

Expected = dict[str, Any]
Samples = NDArray[np.float32]


class FirstWindow(Exception):
    """Enough has been heard."""


class Whisper:
    """The model with the guest around it, called as openai/whisper is."""

    def __init__(self, guest: Guest, model: Model, speech: Path) -> None:
        self.guest, self.model, self.speech = guest, model, speech

    def read(self, file: str) -> Samples:
        samples: Samples = soundfile.read(self.speech / file, dtype="float32")[0]
        return samples

    def _argument(self, options: dict[str, Any]) -> dict[str, Any]:
        dims, tokenizer = self.model.dims, self.model.tokenizer
        return {
            "model": self.model.name,
            "dims": {name: getattr(dims, name) for name in ("n_mels", "n_audio_ctx", "n_vocab", "n_text_ctx")},
            "is_multilingual": tokenizer.is_multilingual,
            "tokens": tokenizer.guest_tokens(),
            "options": {"language": "en", **options},
        }

    def decode(self, file: str, **options: Any) -> dict[str, Any]:
        """`whisper.decode` of the clip padded or cut to 30 s: the first window's event."""
        samples = self.read(file)[:N_SAMPLES]
        mel = log_mel_spectrogram(np.pad(samples, (0, N_SAMPLES - len(samples))), self.model.dims.n_mels)
        windows = []

        def on_event(event: dict[str, Any]) -> None:
            windows.append(event)
            raise FirstWindow

        options = self._argument({"temperature": 0.0, **options})
        stdin = [np.ascontiguousarray(mel.T).tobytes()]
        with pytest.raises(FirstWindow):
            self.guest.run(options, stdin, self.model.graphs, on_event, deadline_s=DEADLINE_S)
        return windows[0]

    def transcribe(self, samples: Samples, **options: Any) -> dict[str, Any]:
        """`model.transcribe`: its text and segments."""
        events: list[dict[str, Any]] = []
        stdin = (block.tobytes() for block in log_mel_frames(lambda: [samples], self.model.dims.n_mels))
        self.guest.run(self._argument(options), stdin, self.model.graphs, events.append, deadline_s=DEADLINE_S)
        return {"text": events[-1]["text"], "segments": [event for event in events if event["event"] == "segment"]}


@pytest.fixture(scope="module")
def whisper(shared: Path) -> Iterator[Whisper]:
    guest = Guest(WASM)
    model = load_model(ModelSpec("tiny_en", shared / "models" / "tiny_en"), "cpu")
    yield Whisper(guest, model, shared / "speech")
    model.close()
    guest.close()


def expected(shared: Path, name: str) -> list[Expected]:
    return [json.loads(line) for line in (shared / "expected" / f"{name}.jsonl").read_text().splitlines()]


NUMBERS = ("avg_logprob", "no_speech_prob", "compression_ratio")


def differences(said: dict[str, Any], reference: Expected) -> list[str]:
    """What of a window or a segment is not as the reference has it."""
    found = []
    for name in ("id", "seek", "tokens", "text", "temperature"):
        if name in reference and name in said and said[name] != reference[name]:
            found.append(f"{name}: {said[name]} instead of {reference[name]}")
    for name in (*NUMBERS, "start", "end"):
        tolerance = 1e-6 if name in ("compression_ratio", "start", "end") else TOLERANCE
        if name in reference and abs(said[name] - reference[name]) > tolerance:
            found.append(f"{name}: {said[name]} instead of {reference[name]}")
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("decode-timestamps", {}),
        ("decode-no-timestamps", {"without_timestamps": True}),
        ("decode-beam5", {"beam_size": 5}),
    ],
)
def test_every_clip_has_the_references_tokens(
    whisper: Whisper, shared: Path, name: str, options: dict[str, Any]
) -> None:
    wrong = {}
    for reference in expected(shared, name):
        if found := differences(whisper.decode(reference["file"], **options), reference):
            wrong[reference["file"]] = found
    assert not wrong


def test_prompts_have_the_references_effect(whisper: Whisper, shared: Path) -> None:
    for reference in expected(shared, "decode-prompt"):
        window = whisper.decode(reference["file"], initial_prompt=reference["prompt"])
        assert not differences(window, reference), reference["file"]


def assert_same_segments(said: dict[str, Any], reference: Expected) -> None:
    assert len(said["segments"]) == len(reference["segments"])
    for segment, of_reference in zip(said["segments"], reference["segments"], strict=True):
        assert not differences(segment, of_reference)
    assert said["text"] == reference["text"]


def test_long_audio_has_the_references_segments(whisper: Whisper, shared: Path) -> None:
    for reference in expected(shared, "transcribe-long"):
        gap = np.zeros(round(reference["gap_s"] * SAMPLE_RATE), np.float32)
        samples = np.concatenate([part for file in reference["files"] for part in (whisper.read(file), gap)])
        assert_same_segments(whisper.transcribe(samples, **reference["options"]), reference)


def test_silence_and_noise_have_the_references_segments(whisper: Whisper, shared: Path) -> None:
    noise = (np.random.default_rng(0).standard_normal(160_000) * 0.01).astype(np.float32)
    audio = {"zeros-5s": np.zeros(80_000, np.float32), "zeros-40s": np.zeros(640_000, np.float32), "noise-10s": noise}
    for reference in expected(shared, "transcribe-quiet"):
        assert_same_segments(whisper.transcribe(audio[reference["name"]], **reference["options"]), reference)


def test_the_ladder_ends_at_temperature_0_where_the_references_does(whisper: Whisper, shared: Path) -> None:
    for reference in expected(shared, "transcribe-ladder"):
        said = whisper.transcribe(whisper.read(reference["file"]))
        if any(segment["temperature"] for segment in reference["segments"]):
            assert all(segment["temperature"] > 0 for segment in said["segments"])
        else:
            assert_same_segments(said, reference)


def test_words_have_the_references_times(whisper: Whisper, shared: Path) -> None:
    for reference in expected(shared, "transcribe-words"):
        said = whisper.transcribe(whisper.read(reference["file"]), **reference["options"])
        assert_same_segments(said, reference)
        for segment, of_reference in zip(said["segments"], reference["segments"], strict=True):
            assert [word["word"] for word in segment["words"]] == [word["word"] for word in of_reference["words"]]
            for word, of_word in zip(segment["words"], of_reference["words"], strict=True):
                assert word["start"] == pytest.approx(of_word["start"], abs=0.02)
                assert word["end"] == pytest.approx(of_word["end"], abs=0.02)
                assert word["probability"] == pytest.approx(of_word["probability"], abs=TOLERANCE)
