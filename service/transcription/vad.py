"""Voice-activity detection with Silero's model: the probability of speech in each 32 ms, and whether there is any.

Loudness is normalised first, because the model hears nothing in very quiet audio.
"""

import itertools
import math
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
FORGETTING = 0.5 ** (STEP_S / 30)  # of a stream's loudness, per step: half in 30 s
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
    factor = np.float32(gain(loudest))
    steps = _pieces(blocks, N_STEP)
    while some := list(itertools.islice(steps, BLOCK_STEPS)):
        yield from silero.probabilities(np.clip(np.array(some) * factor, -1.0, 1.0)).tolist()


class LiveVad:
    """Voice-activity detection of a stream without end. Its loudness is that of the loudest of the last half minute."""

    def __init__(self) -> None:
        self._silero = Silero()
        self._rest = np.empty(0, np.float32)
        self._powers = np.zeros(N_LOUDNESS // N_STEP, np.float64)  # mean squares of the last steps
        self._loudest = 0.0

    def take(self, samples: Samples) -> Iterator[tuple[Samples, float]]:
        """(n,) f32 of 16 kHz → each whole step, (512,), with its probability of speech; the rest waits for more."""
        samples = np.concatenate((self._rest, samples))
        n = len(samples) // N_STEP * N_STEP
        self._rest = samples[n:]
        for step in samples[:n].reshape(-1, N_STEP):
            self._powers = np.append(self._powers[1:], np.mean(np.square(step, dtype=np.float64)))
            self._loudest = max(self._loudest * FORGETTING, math.sqrt(self._powers.mean()))
            loud = np.clip(step * np.float32(gain(self._loudest)), -1.0, 1.0)
            yield step, float(self._silero.probabilities(loud[None])[0])

    @property
    def n_rest(self) -> int:
        """Samples that wait."""
        return len(self._rest)

    def take_rest(self) -> Samples:
        """What waits, without a probability."""
        rest, self._rest = self._rest, np.empty(0, np.float32)
        return rest


def gain(loudest: float) -> float:
    """The factor that brings a root mean square to `LOUD`."""
    return min(LOUD / loudest, MOST_GAIN) if loudest > 0 else 1.0


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
