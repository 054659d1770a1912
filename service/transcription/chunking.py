"""Cuts audio into stretches of speech, found by voice-activity detection and joined across short silences."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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


def stretches(probabilities: Iterable[float], step_s: float, chunking: Chunking) -> Iterator[tuple[float, float]]:
    """(start, end) in seconds of each stretch of speech with its padding; each probability covers `step_s` of audio.

    In order, without overlaps. The last one may end after the audio.
    """
    silence_s = chunking.silence_duration_ms / 1000
    before = 0.0  # end of the last stretch, with its padding
    start = end = -1.0  # of the current stretch, without padding

    def padded() -> Iterator[tuple[float, float]]:
        nonlocal before
        if end - start >= MIN_SPEECH_S:
            stretch = max(before, start - chunking.prefix_padding_ms / 1000), end + silence_s
            before = stretch[1]
            yield stretch

    for number, probability in enumerate(probabilities):
        now, after = number * step_s, (number + 1) * step_s
        if start < 0:
            if probability >= chunking.threshold:
                start, end = now, after
        elif probability >= chunking.threshold - HYSTERESIS:
            end = after
        elif round(after - end, DECIMALS) >= silence_s:
            yield from padded()
            start = -1.0
    if start >= 0:
        yield from padded()


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
