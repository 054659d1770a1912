"""Other voices, rooms, microphones and noise, put on log10 mel power (n_frames, 80); cheap enough for every window."""

import functools

import numpy as np
from scipy.signal import lfilter

from tools.train.features import FLOOR, HOP_LENGTH, N_MELS, SAMPLE_RATE, Floats, hz_to_mel, log10_mel, mel_to_hz

Rng = np.random.Generator


def curve(rng: Rng, size: float) -> Floats:
    """(80,) smooth random curve over the bands, about `size` high: a tilt and three cosines."""
    at = np.linspace(0.0, 1.0, N_MELS, dtype=np.float32)
    shape = rng.normal() * (at - 0.5)
    for waves in (1, 2, 3):
        shape = shape + rng.normal() / (waves + 1) * np.cos(np.pi * waves * at + rng.uniform(0, np.pi))
    return np.asarray(size * shape, dtype=np.float32)


def noise(rng: Rng, n_frames: int) -> Floats:
    """(n_frames, 80) mel power of noise around 1, that may swell and fade: of any colour, or a third of it white."""
    if rng.random() < 0.33:
        return hiss(rng, n_frames)
    grains = rng.gamma(rng.uniform(1.5, 8.0), size=(n_frames, N_MELS)).astype(np.float32)
    colour = 10.0 ** (curve(rng, 0.7) - rng.uniform(0.0, 2.0) * np.linspace(0.0, 1.0, N_MELS, dtype=np.float32))
    power = grains / grains.mean() * colour / colour.mean()
    if rng.random() < 0.4:
        power = power * 10.0 ** (0.5 * np.sin(np.arange(n_frames) / rng.uniform(5, 60) + rng.uniform(0, 6)))[:, None]
    return np.asarray(power, dtype=np.float32)


def hiss(rng: Rng, n_frames: int) -> Floats:
    """(n_frames, 80) mel power of white noise as a microphone gives it, around 1; half of it in waves."""
    samples = rng.normal(size=n_frames * HOP_LENGTH)
    if rng.random() < 0.5:
        at = np.arange(len(samples)) / SAMPLE_RATE
        samples = samples * (1 + np.sin(2 * np.pi * rng.uniform(0.05, 2) * at + rng.uniform(0, 2 * np.pi)))
    power = 10.0 ** log10_mel(samples.astype(np.float32))
    return np.asarray(power / power.mean(), dtype=np.float32)


@functools.cache
def band_centres() -> Floats:
    """(80,) Hz."""
    edges = mel_to_hz(np.linspace(0.0, float(hz_to_mel(np.array(SAMPLE_RATE / 2))), N_MELS + 2))
    return np.asarray(edges[1:-1], dtype=np.float32)


def warp_bands(raw: Floats, factor: float) -> Floats:
    """Log-mel of a speaker whose vocal tract is `factor` times as short: every frequency times `factor`, up to 5 kHz.

    Above it the scale is bent so that 8 kHz stays (vocal tract length perturbation, Jaitly and Hinton 2013).
    """
    hz = band_centres()
    bend, top = 5_000.0 * min(1.0, factor) / factor, SAMPLE_RATE / 2
    above = top - (top - hz) * (top - bend) / (top - bend * factor)
    source = np.where(hz <= bend * factor, hz / factor, above)
    at = np.interp(source, hz, np.arange(N_MELS))
    below = np.minimum(at.astype(np.int64), N_MELS - 2)
    share = (at - below).astype(np.float32)
    return np.asarray(raw[:, below] * (1 - share) + raw[:, below + 1] * share, dtype=np.float32)


def hum(rng: Rng, n_frames: int) -> Floats:
    """(n_frames, 80) mel power of a machine's or the mains' hum, around 1: a steady tone with some of its overtones."""
    at = np.arange(n_frames * HOP_LENGTH) / SAMPLE_RATE
    pitch = rng.uniform(40, 400)
    tones = [rng.uniform(0, 1) / number * np.sin(2 * np.pi * number * pitch * at) for number in range(1, 9)]
    power = 10.0 ** log10_mel(np.sum(tones, axis=0).astype(np.float32))
    return np.asarray(power / power.mean(), dtype=np.float32)


def augment(raw: Floats, rng: Rng) -> Floats:
    """A window's log10 mel → heard elsewhere, from somebody else: vocal tract, room, equaliser, band, noise, gain."""
    if rng.random() < 0.6:
        raw = warp_bands(raw, float(np.exp(rng.uniform(-0.17, 0.17))))
    power = 10.0 ** np.maximum(raw, FLOOR)
    level = max(float(power.mean()), 1e-9)
    if rng.random() < 0.2:  # reverberation: power that decays to a thousandth in 0.1–0.8 s
        decay = 10.0 ** (-3.0 / (100 * rng.uniform(0.1, 0.8)))
        tail = lfilter([0.0, 1.0 - decay], [1.0, -decay], power, axis=0)
        power = power + rng.uniform(0.1, 1.0) * tail
    if rng.random() < 0.7:
        power = power * 10.0 ** curve(rng, 0.45)
    if rng.random() < 0.12:  # a telephone, or a recording that was resampled
        low, high = rng.integers(0, 8), rng.integers(48, 78)
        power[:, :low] *= 1e-5
        power[:, high:] *= 1e-5
    if rng.random() < 0.5:
        power = power + noise(rng, len(power)) * level * 10.0 ** -rng.uniform(0.5, 4.5)
    return np.asarray(np.log10(np.maximum(power, 1e-10)) + rng.uniform(-2.5, 0.7), dtype=np.float32)


def spec_augment(mel: Floats, rng: Rng) -> Floats:
    """Scaled log-mel with up to two bands and two stretches of time replaced by its mean."""
    mean = float(mel.mean())
    for _ in range(int(rng.integers(0, 3))):
        width = int(rng.integers(1, 14))
        start = int(rng.integers(0, N_MELS - width))
        mel[:, start : start + width] = mean
    for _ in range(int(rng.integers(0, 3))):
        width = int(rng.integers(1, min(25, max(2, len(mel) // 10))))
        start = int(rng.integers(0, max(1, len(mel) - width)))
        mel[start : start + width] = mean
    return mel
