"""Wisp itself as an engine of the benchmark: the graphs directly for encode and token, the guest for transcribe."""

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.engines import STEPS, Engine, Files, Unsupported, in_threads, read_clip, timed
from service.audio.decode import decode
from service.audio.log_mel import HOP_LENGTH, log_mel_spectrogram
from service.guest.code_cache import user_cache_folder
from service.guest.wasi_nn import ExecutionContext
from service.settings import Settings
from service.transcription.engine import Engine as App
from service.transcription.types import Options

GREEDY = Options(temperature=(0.0,))


class Wisp(Engine):
    """Wisp on one target; `kernels` "numpy" replaces the C kernels. `vad`: WISP_VAD, if not the default.

    With another `vad` only transcriptions differ, so only they are measured.
    """

    def __init__(self, files: Files, clip: Path, target: str, kernels: str = "", vad: str = "") -> None:
        if kernels == "numpy":
            from kernels.cpu import native_library

            native_library.LIBRARY = Path("/nonexistent")
        self.is_default = not vad
        settings = Settings(model=str(files.model), target=target, open_jobs=64, beam_size=1, vad=vad or Settings().vad)
        app = App(settings, cache_folder=user_cache_folder())
        self.transcriber = app.load()
        self.is_slow = kernels == "numpy" or self.transcriber.model.target.is_software
        self.clip = clip
        tokens = self.transcriber.model.tokenizer.guest_tokens()
        suppress = [*tokens["suppress"], tokens["eot"]]
        begin = tokens["timestamp_begin"]
        rules = [STEPS, 1, tokens["eot"], begin, tokens["no_timestamps"], 50, len(suppress), 0, *suppress]
        self.rules = np.array(rules, np.int32)
        self.start = np.array([[tokens["sot"]]], np.int32)

    # Made on first use, as in every other engine: a cold start includes only the transcription.
    @cached_property
    def mel(self) -> NDArray[np.float32]:
        """[1, n_mels, 2 · n_audio_ctx]: the clip, padded with silence to a whole window."""
        dims = self.transcriber.model.dims
        samples = read_clip(self.clip)
        window = np.zeros(dims.n_audio_ctx * 2 * HOP_LENGTH, np.float32)
        window[: len(samples)] = samples[: len(window)]
        return log_mel_spectrogram(window, dims.n_mels)[None]

    @cached_property
    def encoder(self) -> ExecutionContext:
        model = self.transcriber.model
        return model.graphs[f"{model.name}/encoder"].init_execution_context({})

    @cached_property
    def decoder(self) -> ExecutionContext:
        model = self.transcriber.model
        return model.graphs[f"{model.name}/decoder"].init_execution_context({0: self.encoder})

    def encode(self) -> float:
        self._need_default()
        self.encoder.set_input(0, self.mel)
        return timed(self.encoder.compute)

    def token(self) -> float:
        self._need_default()
        self.decoder.set_input(0, np.array([0], np.int32))
        self.decoder.set_input(1, self.start)
        self.decoder.set_input(3, self.rules)
        seconds = timed(self.decoder.compute)
        return seconds / int(self.decoder.get_output(1).shape[1])

    def transcribe(self, clip: Path) -> str:
        with clip.open("rb") as file:
            return self.transcriber.transcribe(decode(file), GREEDY).text

    def together(self, clip: Path, n: int) -> float:
        self._need_default()
        return in_threads(lambda: self.transcribe(clip), n)

    def _need_default(self) -> None:
        if not self.is_default:
            raise Unsupported("the same as wisp's")
