"""The engines under test, each with the same operations. Imports lie inside: a missing engine is skipped by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

STEPS = 64  # greedy tokens that one decode measurement takes
SAMPLE_RATE = 16_000

FloatArray = NDArray[np.float32]


class Engine(Protocol):
    """What the driver times. All times are seconds of wall clock."""

    def encode(self) -> float:
        """One window of log-mel → audio states (and whatever the decoder needs of them)."""

    def token(self) -> float:
        """One greedy token, rules and choice included, as the mean of STEPS in a row after a start-of-transcript."""

    def transcribe(self) -> float:
        """The clip from 16 kHz samples to text, greedily with timestamps."""

    def text(self) -> str:
        """What the last transcribe gave."""


def read_clip(path: Path) -> FloatArray:
    """(n_samples,) f32 mono of a 16 kHz WAV file, with nothing but the standard library, so that every venv can."""
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


class Wisp:
    """Wisp itself on one target: the graphs directly for encode and token, the guest for transcribe."""

    def __init__(self, model: Path, clip: Path, target: str) -> None:
        from service.app import Engine as App
        from service.features import log_mel_spectrogram
        from service.guest_cache import user_cache_folder
        from service.settings import Settings

        app = App(Settings(model=str(model), target=target), cache_folder=user_cache_folder())
        self.transcriber = app.load()
        loaded = self.transcriber.model
        dims = loaded.dims
        samples = read_clip(clip)
        window = np.zeros(dims.n_audio_ctx * 2 * 160, np.float32)
        window[: len(samples)] = samples[: len(window)]
        self.clip = clip
        self.mel = log_mel_spectrogram(window, dims.n_mels)[None]
        self.encoder = loaded.graphs[f"{loaded.name}/encoder"].init_execution_context({})
        self.decoder = loaded.graphs[f"{loaded.name}/decoder"].init_execution_context({0: self.encoder})
        tokens = loaded.tokenizer.guest_tokens()
        suppress = [*tokens["suppress"], tokens["eot"]]
        begin = tokens["timestamp_begin"]
        rules = [STEPS, 1, tokens["eot"], begin, tokens["no_timestamps"], 50, len(suppress), 0, *suppress]
        self.rules = np.array(rules, np.int32)
        self.start = np.array([[tokens["sot"]]], np.int32)
        self.last = ""

    def encode(self) -> float:
        self.encoder.set_input(0, self.mel)
        return timed(self.encoder.compute)

    def token(self) -> float:
        self.decoder.set_input(0, np.array([0], np.int32))
        self.decoder.set_input(1, self.start)
        self.decoder.set_input(3, self.rules)
        seconds = timed(self.decoder.compute)
        return seconds / int(self.decoder.get_output(1).shape[1])

    def transcribe(self) -> float:
        from service.audio import decode
        from service.transcriber import Options

        def run() -> None:
            with self.clip.open("rb") as file:
                self.last = self.transcriber.transcribe(decode(file), Options(temperature=(0.0,))).text

        return timed(run)

    def text(self) -> str:
        return self.last


class OpenAIWhisper:
    """openai/whisper in torch f32 on the CPU, on the same weights."""

    def __init__(self, model: Path, clip: Path) -> None:
        import torch
        import whisper
        from safetensors.torch import load_file
        from whisper.decoding import DecodingOptions, DecodingTask

        config = json.loads((model / "config.json").read_text())
        dims = whisper.model.ModelDimensions(
            n_mels=config["num_mel_bins"],
            n_audio_ctx=config["max_source_positions"],
            n_audio_state=config["d_model"],
            n_audio_head=config["encoder_attention_heads"],
            n_audio_layer=config["encoder_layers"],
            n_vocab=config["vocab_size"],
            n_text_ctx=config["max_target_positions"],
            n_text_state=config["d_model"],
            n_text_head=config["decoder_attention_heads"],
            n_text_layer=config["decoder_layers"],
        )
        self.model = whisper.model.Whisper(dims)
        arrays = load_file(model / "model.safetensors")
        state = {openai_name(name): array.float() for name, array in arrays.items()}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if unexpected or set(missing) - {"encoder.positional_embedding"}:
            raise ValueError(f"{model}: missing {missing}, unexpected {unexpected}")
        self.model.eval()
        self.samples = read_clip(clip)
        self.mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(self.samples)))[None]
        with torch.no_grad():
            self.states = self.model.encoder(self.mel)
        self.options = DecodingOptions(language="en", fp16=False, sample_len=STEPS, suppress_tokens="-1")
        self.task: Callable[..., Any] = DecodingTask
        self.torch, self.last = torch, ""

    def encode(self) -> float:
        with self.torch.no_grad():
            return timed(lambda: self.model.encoder(self.mel))

    def token(self) -> float:
        task = self.task(self.model, self.options)
        task.logit_filters[1].suppress_tokens.append(task.tokenizer.eot)  # never ends early, as in Wisp's measurement
        tokens = self.torch.tensor([task.initial_tokens])
        with self.torch.no_grad():
            seconds = timed(lambda: task._main_loop(self.states, tokens))
        task.inference.cleanup_caching()
        return seconds / STEPS

    def transcribe(self) -> float:
        def run() -> None:
            self.last = self.model.transcribe(self.samples, language="en", fp16=False, temperature=0.0)["text"]

        return timed(run)

    def text(self) -> str:
        return self.last


def openai_name(name: str) -> str:
    """A Hugging Face tensor name → openai/whisper's."""
    for theirs, ours in (
        ("model.", ""),
        (".layers.", ".blocks."),
        ("encoder_attn_layer_norm", "cross_attn_ln"),
        ("encoder_attn", "cross_attn"),
        ("self_attn_layer_norm", "attn_ln"),
        ("self_attn", "attn"),
        ("final_layer_norm", "mlp_ln"),
        ("q_proj", "query"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        ("out_proj", "out"),
        ("fc1", "mlp.0"),
        ("fc2", "mlp.2"),
        ("embed_positions.weight", "positional_embedding"),
        ("decoder.embed_tokens", "decoder.token_embedding"),
        ("encoder.layer_norm", "encoder.ln_post"),
        ("decoder.layer_norm", "decoder.ln"),
    ):
        name = name.replace(theirs, ours)
    return name


ENGINES: dict[str, Callable[[Path, Path], Engine]] = {
    "wisp cpu": lambda model, clip: Wisp(model, clip, "cpu"),
    "wisp gpu": lambda model, clip: Wisp(model, clip, "gpu"),
    "openai-whisper": OpenAIWhisper,
}
PEERS = {"openai-whisper"}  # run with the interpreter of the peers' virtual environment
