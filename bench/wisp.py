"""Wisp itself as an engine of the benchmark: the graphs directly for encode and token, the guest for transcribe."""

from pathlib import Path

import numpy as np

from bench.engines import STEPS, Files, in_threads, read_clip, timed
from service.audio import decode
from service.engine import Engine as App
from service.features import log_mel_spectrogram
from service.guest_cache import user_cache_folder
from service.settings import Settings
from service.transcription import Options

GREEDY = Options(temperature=(0.0,))


class Wisp:
    """Wisp on one target; `kernels` "numpy" leaves the C kernels out."""

    def __init__(self, files: Files, clip: Path, target: str, kernels: str = "") -> None:
        if kernels == "numpy":
            from kernels import native_library

            native_library.LIBRARY = Path("/nonexistent")
        app = App(Settings(model=str(files.model), target=target, open_jobs=64), cache_folder=user_cache_folder())
        self.transcriber = app.load()
        loaded = self.transcriber.model
        dims = loaded.dims
        samples = read_clip(clip)
        window = np.zeros(dims.n_audio_ctx * 2 * 160, np.float32)
        window[: len(samples)] = samples[: len(window)]
        self.mel = log_mel_spectrogram(window, dims.n_mels)[None]
        self.encoder = loaded.graphs[f"{loaded.name}/encoder"].init_execution_context({})
        self.decoder = loaded.graphs[f"{loaded.name}/decoder"].init_execution_context({0: self.encoder})
        tokens = loaded.tokenizer.guest_tokens()
        suppress = [*tokens["suppress"], tokens["eot"]]
        begin = tokens["timestamp_begin"]
        rules = [STEPS, 1, tokens["eot"], begin, tokens["no_timestamps"], 50, len(suppress), 0, *suppress]
        self.rules = np.array(rules, np.int32)
        self.start = np.array([[tokens["sot"]]], np.int32)

    def encode(self) -> float:
        self.encoder.set_input(0, self.mel)
        return timed(self.encoder.compute)

    def token(self) -> float:
        self.decoder.set_input(0, np.array([0], np.int32))
        self.decoder.set_input(1, self.start)
        self.decoder.set_input(3, self.rules)
        seconds = timed(self.decoder.compute)
        return seconds / int(self.decoder.get_output(1).shape[1])

    def transcribe(self, clip: Path) -> str:
        with clip.open("rb") as file:
            return self.transcriber.transcribe(decode(file), GREEDY).text

    def together(self, clip: Path, n: int) -> float:
        return in_threads(lambda: self.transcribe(clip), n)
