"""Voice-activity detection with Silero's model: the probability of speech in each 32 ms, and whether there is any.

Loudness is normalised first, because the model hears nothing in very quiet audio.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from service.audio.log_mel import SAMPLE_RATE
from service.transcription.silero import N_STEP, Silero

STEP_S = N_STEP / SAMPLE_RATE  # 32 ms
BLOCK_STEPS = 32  # per call: one second
N_LOUDNESS = 2 * SAMPLE_RATE // 5  # 400 ms, over which EBU R 128 measures loudness
LOUD = 0.1  # target for the root mean square of the loudest 400 ms: −20 dB of full scale
MOST_GAIN = 1000.0  # 60 dB; anything quieter is silence
SPEECH = 0.5  # threshold: hum and noise stay below 0.41, a single word in 30 s of noise reaches 0.66

Samples = NDArray[np.float32]


def loudness(blocks: Iterable[Samples]) -> Iterator[float]:
    """Root mean square of each 400 ms of 16 kHz samples."""
    return (float(np.sqrt(np.mean(np.square(piece, dtype=np.float64)))) for piece in _pieces(blocks, N_LOUDNESS))


def speech_probabilities(blocks: Iterable[Samples], loudest: float) -> Iterator[float]:
    """16 kHz mono f32 samples → one probability per `STEP_S`. The last step is padded with silence.

    `loudest`: root mean square of the recording's loudest 400 ms.
    """
    silero = Silero()
    gain = np.float32(min(LOUD / loudest, MOST_GAIN) if loudest > 0 else 1.0)
    steps = _pieces(blocks, N_STEP)
    while some := list(itertools.islice(steps, BLOCK_STEPS)):
        yield from silero.probabilities(np.clip(np.array(some) * gain, -1.0, 1.0)).tolist()


def has_speech(samples: Samples) -> bool:
    """Whether (n,) f32 at 16 kHz contain speech; stops at the first speech found."""
    loudest = max(loudness([samples]), default=0.0)
    return any(probability >= SPEECH for probability in speech_probabilities([samples], loudest))


def _pieces(blocks: Iterable[Samples], size: int) -> Iterator[Samples]:
    """The same samples, `size` at a time, with zeros after the last."""
    rest = np.empty(0, np.float32)
    for block in blocks:
        samples = np.concatenate((rest, block))
        whole = samples.shape[0] // size * size
        yield from samples[:whole].reshape(-1, size)
        rest = samples[whole:]
    if rest.size:
        yield np.pad(rest, (0, size - rest.shape[0]))
