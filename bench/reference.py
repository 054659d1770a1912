"""Replays the calls of openai/whisper recorded in `../shared/expected`, and compares the results."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.audio.log_mel import HOP_LENGTH, SAMPLE_RATE, log_mel_frames, log_mel_spectrogram
from service.guest.runner import Guest
from service.models.loaded import Model

TOLERANCE = 1e-3  # of log-probabilities and probabilities
WORD_TOLERANCE_S = 0.02 + 1e-6
DECODE_OPTIONS: dict[str, dict[str, Any]] = {
    "decode-timestamps": {},
    "decode-no-timestamps": {"without_timestamps": True},
    "decode-beam5": {"beam_size": 5},
    "decode-prompt": {},
}
KINDS = (*DECODE_OPTIONS, "transcribe-quiet", "transcribe-ladder", "transcribe-words", "transcribe-long")

Samples = NDArray[np.float32]
Mel = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One recorded call: a file of `../shared/expected` without its suffix, the clip's name, options, the result."""

    kind: str
    name: str
    options: dict[str, Any]
    answer: dict[str, Any]

    @property
    def is_decode(self) -> bool:
        """Whether the call was `whisper.decode`, for one window, rather than `model.transcribe`."""
        return self.kind in DECODE_OPTIONS

    @property
    def is_greedy(self) -> bool:
        """Whether only temperature 0 was used: above it the random numbers differ."""
        return not any(segment["temperature"] for segment in self.answer.get("segments", ()))

    def samples(self, shared: Path) -> Samples:
        """(n_samples,) f32 at 16 kHz."""
        import soundfile

        def read(file: str) -> Samples:
            samples: Samples = soundfile.read(shared / "speech" / file, dtype="float32")[0]
            return samples

        match self.name:
            case "zeros-5s":
                return np.zeros(5 * SAMPLE_RATE, np.float32)
            case "zeros-40s":
                return np.zeros(40 * SAMPLE_RATE, np.float32)
            case "noise-10s":
                return (np.random.default_rng(0).standard_normal(10 * SAMPLE_RATE) * 0.01).astype(np.float32)
        if "files" not in self.answer:
            return read(self.name)
        gap = np.zeros(round(self.answer["gap_s"] * SAMPLE_RATE), np.float32)
        return np.concatenate([part for file in self.answer["files"] for part in (read(file), gap)])


def cases(shared: Path, kinds: tuple[str, ...] = KINDS) -> Iterator[Case]:
    """The recorded calls of these kinds, in file order. Raises OSError if a file is missing."""
    for kind in kinds:
        for number, line in enumerate((shared / "expected" / f"{kind}.jsonl").read_text().splitlines()):
            answer = json.loads(line)
            options = DECODE_OPTIONS.get(kind, {}) | answer.get("options", {})
            if "prompt" in answer:
                options["initial_prompt"] = answer["prompt"]
            name = answer.get("file") or answer.get("name") or f"{number}: {answer['duration_s']} s"
            yield Case(kind, name, options, answer)


class FirstWindow(Exception):
    """Stops the guest after its first window."""


class Whisper:
    """A model with the guest around it, called like openai/whisper."""

    def __init__(self, guest: Guest, model: Model) -> None:
        self.guest, self.model = guest, model
        self.tokens: dict[str, Any] = model.tokenizer.guest_tokens()

    def answer(self, case: Case, samples: Samples) -> dict[str, Any]:
        """The guest's result for the same call: `window`s and, for a transcription, its `text` and `segments`."""
        if case.is_decode:
            window = self.decode(samples, **case.options)
            return {"windows": [window], "window": window}
        return self.transcribe(samples, **case.options)

    def mel(self, samples: Samples) -> Mel:
        """Samples padded or cut to one window → (n_mels, n_frames)."""
        n_samples = 2 * self.model.dims.n_audio_ctx * HOP_LENGTH
        padding = max(0, n_samples - len(samples))
        return log_mel_spectrogram(np.pad(samples[:n_samples], (0, padding)), self.model.dims.n_mels)

    def decode(self, samples: Samples, **options: Any) -> dict[str, Any]:
        """`whisper.decode` of the clip padded or cut to one window: the first window's event."""
        windows: list[dict[str, Any]] = []

        def on_event(event: dict[str, Any]) -> None:
            windows.append(event)
            raise FirstWindow

        stdin = [np.ascontiguousarray(self.mel(samples).T).tobytes()]
        argument = self._argument({"temperature": 0.0, **options})
        try:
            self.guest.run(argument, stdin, self.model.graphs, on_event, lambda: None)
        except FirstWindow:
            return windows[0]
        raise RuntimeError("the guest gave no window")

    def transcribe(self, samples: Samples, **options: Any) -> dict[str, Any]:
        """`model.transcribe`: its text and segments, and the windows' events."""
        events: list[dict[str, Any]] = []
        stdin = (block.tobytes() for block in log_mel_frames(lambda: [samples], self.model.dims.n_mels))
        self.guest.run(self._argument(options), stdin, self.model.graphs, events.append, lambda: None)
        return {
            "text": events[-1]["text"],
            "segments": [event for event in events if event["event"] == "segment"],
            "windows": [event for event in events if event["event"] == "window"],
        }

    def _argument(self, options: dict[str, Any]) -> dict[str, Any]:
        dims = self.model.dims
        return {
            "model": self.model.name,
            "dims": {name: getattr(dims, name) for name in ("n_mels", "n_audio_ctx", "n_vocab", "n_text_ctx")},
            "is_multilingual": self.model.tokenizer.is_multilingual,
            "tokens": self.tokens,
            "options": {"language": "en", **options},
        }


def differences(case: Case, said: dict[str, Any], *, numbers: bool = True) -> list[str]:
    """Differences from the reference: tokens, text, times, words and, with `numbers`, probabilities.

    If the reference went above temperature 0, only that is compared.
    """
    answer = case.answer
    if case.is_decode:
        return _differences(said["window"], answer, numbers)
    if not case.is_greedy:
        return [] if all(s["temperature"] > 0 for s in said["segments"]) else ["the ladder ended at temperature 0"]
    if len(said["segments"]) != len(answer["segments"]):
        return [f"{len(said['segments'])} segments instead of {len(answer['segments'])}"]
    found = [f"text: {said['text']!r} instead of {answer['text']!r}"] if said["text"] != answer["text"] else []
    for segment, reference in zip(said["segments"], answer["segments"], strict=True):
        found += _differences(segment, reference, numbers)
        if case.options.get("word_timestamps"):
            found += _word_differences(segment["words"], reference["words"], numbers)
    return found


def _differences(said: dict[str, Any], reference: dict[str, Any], numbers: bool) -> list[str]:
    found = []
    for name in ("id", "seek", "tokens", "text", "temperature"):
        if name in reference and name in said and said[name] != reference[name]:
            found.append(f"{name}: {said[name]} instead of {reference[name]}")
    tolerances = {"start": 1e-6, "end": 1e-6}
    if numbers:
        tolerances |= {"avg_logprob": TOLERANCE, "no_speech_prob": TOLERANCE, "compression_ratio": 1e-6}
    for name, tolerance in tolerances.items():
        if name in reference and abs(said[name] - reference[name]) > tolerance:
            found.append(f"{name}: {said[name]} instead of {reference[name]}")
    return found


def _word_differences(said: list[dict[str, Any]], reference: list[dict[str, Any]], numbers: bool) -> list[str]:
    if [word["word"] for word in said] != [word["word"] for word in reference]:
        return ["other words"]
    tolerances = {"start": WORD_TOLERANCE_S, "end": WORD_TOLERANCE_S}
    if numbers:
        tolerances["probability"] = TOLERANCE
    return [
        f"{name} of{word['word']}: {word[name]} instead of {of_reference[name]}"
        for word, of_reference in zip(said, reference, strict=True)
        for name, tolerance in tolerances.items()
        if abs(word[name] - of_reference[name]) > tolerance
    ]
