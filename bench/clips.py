"""The clips of the benchmark: 2 s, jfk.wav (11 s), 30 s and 5 minutes, cut and joined from the shared speech."""

import wave
from pathlib import Path

import numpy as np

from bench.engines import SAMPLE_RATE

JOINED = {"30 s": 30, "5 min": 300}  # seconds


def build_clips(speech: Path, folder: Path) -> dict[str, Path]:
    """{name: 16 kHz mono 16-bit WAV}; makes missing ones; skips those whose source is missing."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    clips: dict[str, Path] = {}
    jfk = speech / "jfk.wav"
    if jfk.exists():
        samples = soundfile.read(jfk, dtype="int16")[0]
        clips["2 s"] = _write(folder / "2s.wav", samples[: 2 * SAMPLE_RATE])
        clips["11 s"] = _write(folder / "11s.wav", samples)
    utterances = sorted((speech / "librispeech").glob("*.flac"))
    if utterances:
        # Repeated until long enough: five minutes are about forty utterances.
        joined = np.concatenate([soundfile.read(path, dtype="int16")[0] for path in utterances])
        for name, seconds in JOINED.items():
            samples = np.resize(joined, seconds * SAMPLE_RATE)
            clips[name] = _write(folder / f"{seconds}s.wav", samples)
    return clips


def _write(path: Path, samples: np.ndarray[tuple[int], np.dtype[np.int16]]) -> Path:
    if not path.exists():
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    return path
