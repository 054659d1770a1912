"""Cuts audio into stretches of speech, found by voice-activity detection and joined across short silences."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

MIN_SPEECH_S = 0.1  # anything shorter is a click
HYSTERESIS = 0.15  # speech continues down to this much below the threshold, as in Silero's own tools
MIN_GAP_S = 2.0  # silence that separates chunks; across a shorter one, stretches share a chunk
DECIMALS = 6  # of seconds; anything smaller is rounding error
FRAMES_PER_SECOND = 100  # of features; a chunk's times are rounded outwards to them


@dataclass(frozen=True)
class Chunking:
    """OpenAI's `server_vad` with its defaults, which `auto` uses too.

    `threshold`: minimum probability of speech, 0 to 1. Keeps `prefix_padding_ms` of audio before speech. Speech ends
    after `silence_duration_ms` of silence, which is kept as well.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 200


class Gate:
    """Where speech starts and ends, from one probability after another."""

    def __init__(self, step_s: float, chunking: Chunking) -> None:
        """`step_s`: the seconds that each probability covers."""
        self._step_s, self.chunking = step_s, chunking
        self._n_steps = 0
        self.start = self.end = -1.0  # of the current stretch, without padding

    def take(self, probability: float) -> tuple[float, float] | None:
        """The next step → the stretch that its silence ends: start and end in seconds, without padding."""
        now, after = self._n_steps * self._step_s, (self._n_steps + 1) * self._step_s
        self._n_steps += 1
        if self.start < 0:
            if probability >= self.chunking.threshold:
                self.start, self.end = now, after
        elif probability >= self.chunking.threshold - HYSTERESIS:
            self.end = after
        elif self.silence_s >= self.chunking.silence_duration_ms / 1000:
            return self.close()
        return None

    @property
    def silence_s(self) -> float:
        """Seconds since the end of the current stretch."""
        return round(self._n_steps * self._step_s - self.end, DECIMALS)

    @property
    def is_open(self) -> bool:
        """Whether the current stretch is longer than a click."""
        return self.start >= 0 and self.end - self.start >= MIN_SPEECH_S

    def close(self) -> tuple[float, float] | None:
        """End the current stretch, if it is longer than a click."""
        stretch = (self.start, self.end) if self.is_open else None
        self.start = self.end = -1.0
        return stretch


def stretches(probabilities: Iterable[float], step_s: float, chunking: Chunking) -> Iterator[tuple[float, float]]:
    """(start, end) in seconds of each stretch of speech with its padding; each probability covers `step_s` of audio.

    In order, without overlaps. The last one may end after the audio.
    """
    gate, before = Gate(step_s, chunking), 0.0
    for found in chain(map(gate.take, probabilities), map(Gate.close, [gate])):
        if found is not None:
            start, end = found
            start = max(before, start - chunking.prefix_padding_ms / 1000)
            before = end + chunking.silence_duration_ms / 1000
            yield start, before


def chunks(speech: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Stretches → chunks to transcribe: joins those with less than `MIN_GAP_S` between them.

    The model's windows follow each other within a chunk. If chunks were single windows, most would need a second one:
    the model leaves what is unfinished at the end of a window to the next.
    """
    start = end = -1.0
    for first, last in speech:
        if start >= 0 and first - end < MIN_GAP_S:
            end = last
            continue
        if start >= 0:
            yield start, end
        start, end = first, last
    if start >= 0:
        yield start, end


def clip_timestamps(
    probabilities: Iterable[float], step_s: float, chunking: Chunking, *, duration_s: float
) -> list[float]:
    """The guest's `clip_timestamps`: start, end, start, end, … in seconds, within the audio; 0, 0 without speech."""
    clips: list[float] = []
    for start, end in chunks(stretches(probabilities, step_s, chunking)):
        first = math.floor(round(start * FRAMES_PER_SECOND, DECIMALS)) / FRAMES_PER_SECOND
        last = min(math.ceil(round(end * FRAMES_PER_SECOND, DECIMALS)) / FRAMES_PER_SECOND, duration_s)
        clips += (max(first, clips[-1] if clips else 0.0), last)
    return clips or [0.0, 0.0]
