"""Where to cut audio: stretches of speech, as voice-activity detection hears them, joined over short silences."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MIN_SPEECH_S = 0.1  # shorter is a click
HYSTERESIS = 0.15  # speech that has begun goes on down to this much under the threshold, as in Silero's own tools
MIN_GAP_S = 2.0  # silence that cuts; over a shorter one, stretches share a chunk
DECIMALS = 6  # of seconds: what is less is error of the arithmetic
FRAMES_PER_SECOND = 100  # of features: what a chunk's times are rounded to, outwards


@dataclass(frozen=True)
class Chunking:
    """OpenAI's `server_vad` with its defaults, which are those of `auto` too.

    `threshold`: how likely speech must be, 0 to 1. `prefix_padding_ms` of audio are kept before it. It ends with
    `silence_duration_ms` of silence, which are kept as well.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 200


def stretches(probabilities: Iterable[float], step_s: float, chunking: Chunking) -> Iterator[tuple[float, float]]:
    """(start, end) in seconds of each stretch of speech with its padding; a probability is of `step_s` of audio.

    They are in order, and none reaches into the next. The last may end after the audio.
    """
    silence_s = chunking.silence_duration_ms / 1000
    before = 0.0  # where the last stretch ended, with its padding
    start = end = -1.0  # of the stretch under way, without padding

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
    """Stretches → chunks to transcribe: those with less than `MIN_GAP_S` between them, together.

    The model's windows follow each other in a chunk. Cut to single windows, most chunks would need a second: the model
    leaves what it has not finished at the end of a window to the next.
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
    """The guest's `clip_timestamps`: start, end, start, end, … in seconds, within the audio; 0, 0 for no speech."""
    clips: list[float] = []
    for start, end in chunks(stretches(probabilities, step_s, chunking)):
        first = math.floor(round(start * FRAMES_PER_SECOND, DECIMALS)) / FRAMES_PER_SECOND
        last = min(math.ceil(round(end * FRAMES_PER_SECOND, DECIMALS)) / FRAMES_PER_SECOND, duration_s)
        clips += (max(first, clips[-1] if clips else 0.0), last)
    return clips or [0.0, 0.0]
