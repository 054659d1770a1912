"""Cuts a stream of live audio into utterances, at silence or where told."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.audio.log_mel import SAMPLE_RATE, Samples
from service.errors import NothingToCommit
from service.transcription.chunking import HYSTERESIS, MIN_SPEECH_S, Chunking, Gate
from service.transcription.silero import N_STEP
from service.transcription.transcriber import Transcriber
from service.transcription.types import Options
from service.transcription.utterance import Utterance, Words
from service.transcription.vad import STEP_S, LiveVad

CONTINUES_S = 3.0  # an utterance that begins this soon after another is taken to continue it
PAUSE_S = 0.2  # of silence, after which an utterance is heard as if it were over
LEAD_S = 0.3  # before the padding: the first sound of a word is often too soft to count as speech
MIN_COMMIT_S = 0.1  # OpenAI's
ASIDE_S = 0.5  # a longer block of audio is analysed in a thread, this much at a time


@dataclass(frozen=True)
class Started:
    """An utterance begins at this second of the stream, its padding included."""

    utterance: Utterance
    at_s: float


@dataclass(frozen=True)
class Stopped:
    """An utterance ends at this second of the stream."""

    utterance: Utterance
    at_s: float


Border = Started | Stopped


class Listener:
    """One stream: (n,) f32 blocks of 16 kHz. For one event loop, which calls one method at a time."""

    def __init__(
        self,
        transcriber: Transcriber,
        options: Options,
        *,
        cutting: Chunking | None,
        on_words: Callable[[Utterance, Words], None],
    ) -> None:
        """`cutting`: what counts as silence; None ends an utterance only by commit(). Both may be replaced later."""
        self.transcriber, self.options, self._on_words = transcriber, options, on_words
        self._open: Utterance | None = None
        self._last: Utterance | None = None
        self._all: set[Utterance] = set()  # those with audio that no pass has heard
        self._vad = LiveVad()
        self._n_samples = self._n_ended = 0  # of the stream; up to the end of the last utterance
        self._kept: deque[Samples] = deque()  # its last ones, outside of utterances
        self._n_silent = 0  # at its end
        self.cutting = cutting

    @property
    def cutting(self) -> Chunking | None:
        """What ends an utterance; None: only commit()."""
        return self._cutting

    @cutting.setter
    def cutting(self, cutting: Chunking | None) -> None:
        self._cutting = cutting
        if self._open is None:
            self._reset_gate()
        else:
            self._gate.chunking = cutting or Chunking()

    @property
    def buffered_s(self) -> float:
        """Seconds of audio that no pass has heard yet."""
        self._all = {utterance for utterance in self._all if utterance is self._open or utterance.unheard_s}
        return sum(utterance.unheard_s for utterance in self._all)

    async def hear(self, samples: Samples) -> list[Border]:
        """The stream's next samples → what begins and ends in them, in order."""
        found: list[Border] = []
        size = int(ASIDE_S * SAMPLE_RATE)
        for first in range(0, len(samples), size):
            taking = partial(list[tuple[Samples, float]], self._vad.take(samples[first : first + size]))
            for step, probability in await asyncio.to_thread(taking) if len(samples) > size else taking():
                found += self._take(step, probability)
        return found

    def commit(self) -> list[Border]:
        """End the current utterance, or make one of what lies between two. Raises NothingToCommit for too little."""
        if self._n_samples + self._vad.n_rest - self._n_ended < MIN_COMMIT_S * SAMPLE_RATE:
            raise NothingToCommit
        found: list[Border] = [] if self._open else [self._start(self._n_ended)]
        assert self._open is not None
        rest = self._vad.take_rest()
        self._open.add(rest, has_speech=False)
        self._n_samples += len(rest)
        return [*found, self._stop(self._open)]

    async def idle(self) -> None:
        """Wait until no pass is due."""
        for utterance in list(self._all):
            await utterance.idle()

    def clear(self) -> None:
        """Forget the current utterance, and what could begin the next."""
        if self._open is not None:
            self._open.cancel()
            self._open = None
        self._n_samples += len(self._vad.take_rest())
        self._end()

    def close(self) -> None:
        """Cancel every utterance whose result is still missing, and free the audio. Idempotent."""
        self.clear()
        for utterance in self._all:
            utterance.cancel()
        self._all.clear()

    def _take(self, step: Samples, probability: float) -> Iterator[Border]:
        stretch = self._gate.take(probability)
        self._n_samples += len(step)
        has_speech = probability >= self._gate.chunking.threshold - HYSTERESIS
        self._n_silent = 0 if has_speech else self._n_silent + len(step)
        if self._open is None:
            self._keep(step)
            if self.cutting is None:
                yield self._start(self._n_ended, has_speech=has_speech)
            elif self._gate.is_open:
                padding_s = self.cutting.prefix_padding_ms / 1000
                start = self._gate_from + round((self._gate.start - padding_s) * SAMPLE_RATE)
                yield self._start(max(start, self._n_ended))
            return
        self._open.add(step, has_speech=has_speech)
        if self._n_silent >= PAUSE_S * SAMPLE_RATE:
            self._open.pause()
        if stretch is not None and self.cutting is not None:
            yield self._stop(self._open)

    def _keep(self, step: Samples) -> None:
        padding_s = self.cutting.prefix_padding_ms / 1000 if self.cutting is not None else 0.0
        self._kept.append(step)
        while (len(self._kept) - 1) * N_STEP >= (LEAD_S + padding_s + MIN_SPEECH_S + 2 * STEP_S) * SAMPLE_RATE:
            self._kept.popleft()

    def _start(self, at: int, *, has_speech: bool = True) -> Started:
        """An utterance that begins with the kept samples from `at` on."""
        kept = np.concatenate(self._kept) if self._kept else np.empty(0, np.float32)
        self._kept.clear()
        first = max(0, len(kept) - (self._n_samples - at) - int(LEAD_S * SAMPLE_RATE))
        gap = self._n_samples - len(kept) + first - self._n_ended
        before = self._last if gap < CONTINUES_S * SAMPLE_RATE else None
        self._last = utterance = self._open = Utterance(self.transcriber, self.options, self._on_words, before, gap)
        self._all.add(utterance)
        utterance.add(kept[first:], has_speech=has_speech)
        return Started(utterance, max(at, self._n_samples - len(kept)) / SAMPLE_RATE)

    def _stop(self, utterance: Utterance) -> Stopped:
        utterance.stop()
        self._open = None
        self._end()
        return Stopped(utterance, self._n_samples / SAMPLE_RATE)

    def _end(self) -> None:
        self._n_ended = self._n_samples
        self._kept.clear()
        self._reset_gate()

    def _reset_gate(self) -> None:
        """Look for a stretch of speech from here on."""
        self._gate, self._gate_from = Gate(STEP_S, self._cutting or Chunking()), self._n_samples
