"""The engines that Wisp is compared with, each through its own Python interface, with the same weights and threads.

They run in their own virtual environment. All decode greedily at temperature 0 with timestamps, without the checks that
would decode a window again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from bench.engines import STEPS, THREADS, Engine, Files, Unsupported, in_threads, read_clip, timed
from kernels.checkpoints.load import load_checkpoint

N_SAMPLES = 480_000  # of a window


def _need_cuda(n_devices: int) -> None:
    if not n_devices:
        raise ImportError("there is no CUDA device, or the package was installed without CUDA")


def _finish(torch: Any, device: str) -> None:
    """Wait for the GPU: torch returns before its work is done."""
    if device == "cuda":
        torch.cuda.synchronize()


class OpenAIWhisper(Engine):
    """openai/whisper in torch: f32 on the CPU, f16 on CUDA."""

    def __init__(self, files: Files, clip: Path, device: str = "cpu") -> None:
        import torch
        import whisper

        if device == "cuda":
            _need_cuda(torch.cuda.device_count())
        self.device, self.is_half = device, device == "cuda"
        torch.set_num_threads(THREADS)
        checkpoint = load_checkpoint(files.model)
        self.model = whisper.model.Whisper(whisper.model.ModelDimensions(**vars(checkpoint.dims)))
        weights = {name: torch.from_numpy(array.astype(np.float32)) for name, array in checkpoint.arrays.items()}
        self.model.load_state_dict(weights)
        self.model.eval().to(device)
        self.clip, self.torch, self.whisper = clip, torch, whisper
        self.states: Any = None

    def encode(self) -> float:
        samples = self.torch.from_numpy(read_clip(self.clip))
        mel = self.whisper.log_mel_spectrogram(self.whisper.pad_or_trim(samples))[None].to(self.device)
        mel = mel.half() if self.is_half else mel

        def run() -> None:
            self.states = self.model.encoder(mel)
            _finish(self.torch, self.device)

        with self.torch.no_grad():
            return timed(run)

    def token(self) -> float:
        from whisper.decoding import DecodingOptions, DecodingTask

        options = DecodingOptions(language="en", fp16=self.is_half, sample_len=STEPS, suppress_tokens="-1")
        task = DecodingTask(self.model, options)
        task.logit_filters[1].suppress_tokens.append(task.tokenizer.eot)  # never ends early, as in Wisp's measurement
        tokens = self.torch.tensor([task.initial_tokens], device=self.device)
        with self.torch.no_grad():
            seconds = timed(lambda: task._main_loop(self.states, tokens))
        task.inference.cleanup_caching()
        return seconds / STEPS

    def transcribe(self, clip: Path) -> str:
        unchecked = {"compression_ratio_threshold": None, "logprob_threshold": None, "no_speech_threshold": None}
        samples = read_clip(clip)
        options = {"language": "en", "fp16": self.is_half, "temperature": 0.0, **unchecked}
        return str(self.model.transcribe(samples, **options)["text"])


class FasterWhisper(Engine):
    """faster-whisper on CTranslate2."""

    def __init__(self, files: Files, clip: Path, compute_type: str, device: str = "cpu") -> None:
        from faster_whisper import WhisperModel

        if device == "cuda":
            import ctranslate2

            _need_cuda(ctranslate2.get_cuda_device_count())
        folder = files.need("ctranslate2")
        self.model = WhisperModel(str(folder), device=device, compute_type=compute_type, cpu_threads=THREADS)
        self.clip = clip
        self.states: Any = None

    def encode(self) -> float:
        samples = read_clip(self.clip)
        window = np.pad(samples[:N_SAMPLES], (0, N_SAMPLES - len(samples[:N_SAMPLES])))
        mel = self.model.feature_extractor(window)[:, :3000]

        def run() -> None:
            self.states = self.model.encode(mel)

        return timed(run)

    def token(self) -> float:
        suppress = [-1, self.model.hf_tokenizer.token_to_id("<|endoftext|>")]
        start = [[self.model.hf_tokenizer.token_to_id("<|startoftranscript|>")]]

        def run() -> Any:
            return self.model.model.generate(
                self.states, start, beam_size=1, max_length=STEPS, suppress_tokens=suppress, suppress_blank=False
            )

        results: list[Any] = []
        seconds = timed(lambda: results.extend(run()))
        return seconds / len(results[0].sequences_ids[0])

    def transcribe(self, clip: Path) -> str:
        segments, _ = self.model.transcribe(
            read_clip(clip),
            beam_size=1,
            temperature=0.0,
            language="en",
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
        )
        return "".join(segment.text for segment in segments)

    def together(self, clip: Path, n: int) -> float:
        return in_threads(lambda: self.transcribe(clip), n)


class FasterWhisperBatched(FasterWhisper):
    """faster-whisper's batched pipeline: the model takes a long file's windows, cut at silence, as a batch."""

    def encode(self) -> float:
        raise Unsupported("the same as faster-whisper's")

    def token(self) -> float:
        raise Unsupported("the same as faster-whisper's")

    def transcribe(self, clip: Path) -> str:
        from faster_whisper import BatchedInferencePipeline

        samples = read_clip(clip)
        if len(samples) <= N_SAMPLES:
            raise Unsupported("a single window makes no batch")
        pipeline = BatchedInferencePipeline(self.model)
        segments, _ = pipeline.transcribe(samples, language="en", beam_size=1, temperature=0.0, batch_size=8)
        return "".join(segment.text for segment in segments)

    def together(self, clip: Path, n: int) -> float:
        raise Unsupported("a batch is of one file")


class WhisperCpp(Engine):
    """whisper.cpp, weights in f16 or quantised, through pywhispercpp; on a GPU if built for one."""

    def __init__(self, files: Files, clip: Path, device: str = "cpu", weights: str = "ggml-model.bin") -> None:
        import _pywhispercpp
        from pywhispercpp.model import Model

        libraries = {path.name for path in Path(_pywhispercpp.__file__).parent.rglob("libggml-*")}
        if device == "gpu" and not any(re.match("libggml-(cuda|vulkan|metal)", name) for name in libraries):
            raise ImportError("pywhispercpp was built without CUDA, Vulkan or Metal")
        path = files.need(weights)
        quiet = {"print_progress": False, "print_realtime": False, "print_timestamps": False}
        context = {"use_gpu": device == "gpu"}
        self.model = Model(
            str(path), n_threads=THREADS, redirect_whispercpp_logs_to=None, context_params=context, **quiet
        )
        self.clip = clip

    def encode(self) -> float:
        import _pywhispercpp as cpp

        cpp.whisper_pcm_to_mel(self.model._ctx, read_clip(self.clip), len(read_clip(self.clip)), THREADS)
        return timed(lambda: cpp.whisper_encode(self.model._ctx, 0, THREADS))

    def token(self) -> float:
        """The decoder and its logits only: the interface does not offer the choice separately."""
        import _pywhispercpp as cpp

        context = self.model._ctx
        start = cpp.whisper_token_sot(context)

        def run() -> None:
            for step in range(STEPS):
                cpp.whisper_decode(context, start, 1, step, THREADS)

        return timed(run) / STEPS

    def transcribe(self, clip: Path) -> str:
        segments = self.model.transcribe(
            read_clip(clip), temperature=0.0, temperature_inc=0.0, greedy={"best_of": 1}, language="en"
        )
        return " ".join(segment.text for segment in segments)
