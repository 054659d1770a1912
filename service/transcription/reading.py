"""Reads a recording's features in turns: a long one lets others go first at times, and can be cancelled."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from service.audio.decode import Audio, Samples, decode
from service.audio.log_mel import CHUNK_SECONDS, SAMPLE_RATE, LogMelFrames, log_mel_frames
from service.transcription.chunking import Chunking, clip_timestamps
from service.transcription.recent import Recent
from service.transcription.run import Run
from service.transcription.vad import STEP_S, loudness, speech_probabilities


def audio_of(samples: NDArray[np.float32]) -> Audio:
    """(n_samples,) f32 of 16 kHz mono sound that is already in memory."""
    return Audio(len(samples) / SAMPLE_RATE, "PCM", lambda: (samples,))


@dataclass(frozen=True)
class Upload:
    """A file to decode, of at most `max_seconds`. It stays open until its job has ended."""

    file: BinaryIO
    max_seconds: float

    def n_bytes(self) -> int:
        """The file's size. Rewinds the file."""
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(0)
        return size


class Reader:
    """Reads one run's recording. Lets others go first every 30 s of sound and while it waits for the decoder."""

    def __init__(self, run: Run, on_block: Callable[[float], None], recent: Recent | None = None) -> None:
        """`on_block`: called with the seconds read so far, block by block; raises to stop reading.

        `recent`: keeps the samples behind the features.
        """
        self._run, self._on_block, self._recent = run, on_block, recent
        self._piece = -1  # the current one, of 30 s
        self._seconds = -1.0  # read so far

    def decoded(self, recording: Audio | Upload) -> Audio:
        """The recording, decoded. Raises what decode() and `on_block` raise."""
        if isinstance(recording, Audio):
            return recording
        return decode(recording.file, max_seconds=recording.max_seconds, on_block=self._begin())

    def features(self, audio: Audio, n_mels: int) -> LogMelFrames:
        """Its log-mel frames, after reading all of it to find the maximum. Later frames may be read again."""
        passing = self._recent.passing if self._recent else iter
        return log_mel_frames(lambda: passing(self._blocks(audio)), n_mels)

    def clips(self, audio: Audio, chunking: Chunking) -> list[float]:
        """The stretches of speech: start, end, start, … in seconds. Call it after features(), whose samples `recent`
        keeps; reads the recording again if it is too long for that."""

        def blocks() -> Iterable[Samples]:
            return [self._recent.samples()] if self._recent and self._recent.is_whole else self._blocks(audio)

        def probabilities() -> Iterator[float]:
            loudest = max(loudness(blocks()), default=0.0)
            self._begin()
            for number, probability in enumerate(speech_probabilities(blocks(), loudest)):
                self._at(number * STEP_S)
                yield probability

        return clip_timestamps(probabilities(), STEP_S, chunking, duration_s=audio.duration)

    def _blocks(self, audio: Audio) -> Iterator[Samples]:
        at, n_samples = self._begin(), 0
        for block in audio.blocks():
            at(n_samples / SAMPLE_RATE)
            n_samples += block.shape[0]
            yield block

    def _begin(self) -> Callable[[float], None]:
        self._piece, self._seconds = -1, -1.0
        return self._at

    def _at(self, seconds: float) -> None:
        self._on_block(seconds)
        piece = int(seconds // CHUNK_SECONDS)
        # A decoder that is slow to produce the next sample, as with a hostile file, lets others go first too.
        is_waiting, self._seconds = seconds == self._seconds, seconds
        if piece > self._piece or is_waiting:
            self._piece = piece
            self._run.border()
