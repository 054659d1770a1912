"""The engines under test by name, and their operations. Each engine's imports are in its own module."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("WISP_SHARED", ROOT.parent / "shared"))  # models, speech, recordings of openai/whisper
STEPS = 64  # greedy tokens per decode measurement
SAMPLE_RATE = 16_000
THREADS = len(os.sched_getaffinity(0))  # for every engine

FloatArray = NDArray[np.float32]


class Unsupported(Exception):
    """An operation that an engine's Python interface does not offer; the message says why."""


@dataclass(frozen=True)
class Files:
    """One set of weights in every engine's format; see convert.py."""

    model: Path  # the original Hugging Face folder
    converted: Path  # the output of convert.py: huggingface/, ctranslate2/, ggml-model.bin and quantised ones

    def need(self, name: str) -> Path:
        """The converted form of that name. Raises ImportError if it could not be made, which skips the engine."""
        path = self.converted / name
        if not path.exists():
            raise ImportError(f"the weights could not be converted to {name}")
        return path


class Engine(ABC):
    """An engine's timed operations. All times are seconds of wall clock; decoding is greedy, without fallback."""

    is_slow = False  # gets only the short clips and no load

    @abstractmethod
    def encode(self) -> float:
        """One window of log-mel → audio states (and the decoder's inputs made from them)."""

    @abstractmethod
    def token(self) -> float:
        """One greedy token: the mean of STEPS in a row after a start-of-transcript."""

    @abstractmethod
    def transcribe(self, clip: Path) -> str:
        """The clip's text, with timestamps."""

    def together(self, clip: Path, n: int) -> float:
        """Seconds for n concurrent transcriptions of the clip to finish."""
        raise Unsupported("its interface serves one transcription at a time")


def read_clip(path: Path) -> FloatArray:
    """(n_samples,) f32 mono of a 16 kHz WAV file, with the standard library only, so that it works in every venv."""
    import wave

    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (SAMPLE_RATE, 1, 2):
            raise ValueError(f"{path}: the benchmark reads 16 kHz mono 16-bit WAV")
        frames = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return frames.astype(np.float32) / np.float32(32768)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_threads(call: Callable[[], object], n: int) -> float:
    """Seconds for n concurrent calls in n threads."""
    with ThreadPoolExecutor(n) as threads:
        return timed(lambda: [future.result() for future in [threads.submit(call) for _ in range(n)]])


@dataclass(frozen=True)
class Entry:
    """How to make an engine, and in which environment."""

    module: str  # of the class
    name: str
    options: dict[str, str]
    is_peer: bool  # runs in the peers' virtual environment
    is_gpu: bool = False  # compared with Wisp on WebGPU
    variables: Mapping[str, str | None] = field(default_factory=dict)  # environment variables; None unsets one

    def environment(self) -> dict[str, str]:
        """The process's environment."""
        merged = {**os.environ, **self.variables}
        return {name: value for name, value in merged.items() if value is not None}

    def make(self, files: Files, clip: Path) -> Engine:
        """The loaded engine. Raises ImportError if something it needs isn't installed."""
        from importlib import import_module

        engine: Engine = getattr(import_module(self.module), self.name)(files, clip, **self.options)
        return engine


def _wisp(target: str, kernels: str = "", vad: str = "", **variables: str | None) -> Entry:
    as_its_command: dict[str, str | None] = {  # sets it: see service/cli/main.py
        "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "1")
    }
    options = {"target": target, "kernels": kernels, "vad": vad}
    return Entry("bench.wisp", "Wisp", options, False, target == "gpu", as_its_command | variables)


def _peer(name: str, **options: str) -> Entry:
    return Entry("bench.peers", name, options, True, options.get("device", "cpu") != "cpu")


ENGINES: dict[str, Entry] = {
    "wisp": _wisp("cpu"),
    "wisp, WISP_VAD=off": _wisp("cpu", vad="off"),
    "wisp, WISP_VAD=cut": _wisp("cpu", vad="cut"),
    "wisp, NumPy": _wisp("cpu", "numpy"),
    "wisp, NumPy, OPENBLAS_CORETYPE unset": _wisp("cpu", "numpy", OPENBLAS_CORETYPE=None),
    "wisp gpu": _wisp("gpu"),
    "openai-whisper": _peer("OpenAIWhisper"),
    "faster-whisper int8": _peer("FasterWhisper", compute_type="int8"),
    "faster-whisper f32": _peer("FasterWhisper", compute_type="float32"),
    "faster-whisper int8, batched": _peer("FasterWhisperBatched", compute_type="int8"),
    "whisper.cpp": _peer("WhisperCpp"),
    "whisper.cpp q8_0": _peer("WhisperCpp", weights="ggml-model-q8_0.bin"),
    "whisper.cpp q5_1": _peer("WhisperCpp", weights="ggml-model-q5_1.bin"),
    "openai-whisper CUDA f16": _peer("OpenAIWhisper", device="cuda"),
    "faster-whisper CUDA f16": _peer("FasterWhisper", device="cuda", compute_type="float16"),
    "whisper.cpp GPU": _peer("WhisperCpp", device="gpu"),
}
