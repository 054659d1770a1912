"""Live speech without a model: a tokenizer of a few words, and a transcriber that hears what a script says."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kernels.checkpoints.common import Dimensions
from service.audio.decode import Audio
from service.errors import WispError
from service.settings import Settings
from service.transcription.run import Run
from service.transcription.types import Options, Segment, Token, Transcription

DIMS = Dimensions(80, 1500, 8, 1, 1, 1700, 448, 8, 1, 1)
EOT, T = 100, 110  # the end of text, the first timestamp


class FakeTokenizer:
    """Token n is the word " w<n>"; from 60 on without its space, from 80 on one of the two halves of "é"."""

    eot, timestamp_begin, languages = EOT, T, dict[str, int]()

    def token_bytes(self, token: int) -> bytes:
        if token >= 80:
            return "é".encode()[token % 2 : token % 2 + 1]
        return f"w{token}".encode() if token >= 60 else f" w{token}".encode()

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.token_bytes(token) for token in ids if token < EOT).decode("utf-8", "replace")


class FakeModel:
    name, tokenizer, dims = "fake", FakeTokenizer(), DIMS


class FakeTranscriber:
    """`hears(seconds, options)`: the tokens after the settled ones, None in silence, or an error to raise.

    A pass ends at once, unless `held` is true: then with release().
    """

    def __init__(self, hears: Callable[[float, Options], Sequence[int] | WispError | None], *, step_s: float = 1.0):
        self.settings, self.model, self.hears = Settings(live_step_s=step_s), FakeModel(), hears
        self.passes: list[tuple[float, Options]] = []  # seconds of audio
        self.held, self._waiting = False, list[Callable[[], None]]()
        self.avg_logprob = -0.2
        self.is_busy = False

    def submit(self, recording: Audio, options: Options, on_segment: Any = None) -> Run:
        heard = self.hears(recording.duration, options)
        if isinstance(heard, WispError) and heard.status in (429, 503):
            raise heard
        self.passes.append((recording.duration, options))
        run = Run("fake")
        run.on_cancel = lambda: None

        def end() -> None:
            if isinstance(heard, WispError):
                run.future.set_exception(heard)
            else:
                run.future.set_result(self._transcription(heard, recording.duration, options))

        if self.held:
            self._waiting.append(end)
        else:
            end()
        return run

    def release(self) -> None:
        while self._waiting:
            self._waiting.pop(0)()

    def _transcription(self, heard: Sequence[int] | None, seconds: float, options: Options) -> Transcription:
        if heard is None:
            return Transcription("", "en", seconds, ())
        tokens = (*(options.settled or ()), *heard)
        decode, token_bytes = self.model.tokenizer.decode, self.model.tokenizer.token_bytes
        logprobs = tuple(Token(decode([t]), token_bytes(t), -t / 100) for t in tokens if t < EOT)
        text = decode(tokens)
        segment = Segment(0, 0, 0.0, seconds, text, tokens, 0.0, self.avg_logprob, 1.0, 0.0, (), logprobs)
        return Transcription(text, "en", seconds, (segment,))
