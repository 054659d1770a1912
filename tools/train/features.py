"""Whisper's log-mel features, in two halves so that augmentation can work on mel power between them."""

import functools

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples: 10 ms
N_MELS = 80
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH  # 100
FLOOR = -10.0  # log10 of the least mel power

Floats = NDArray[np.float32]


def hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    return np.where(hz < 1000.0, hz * 3 / 200, 15.0 + np.log(np.maximum(hz, 1e-9) / 1000.0) * 27 / np.log(6.4))


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `hz_to_mel`."""
    return np.where(mel < 15.0, mel * 200 / 3, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27))


@functools.cache
def mel_filters(n_mels: int = N_MELS) -> Floats:
    """(n_mels, 201) triangles of unit area, as librosa's `filters.mel(sr=16000, n_fft=400)`."""
    edges = mel_to_hz(np.linspace(0.0, float(hz_to_mel(np.array(SAMPLE_RATE / 2))), n_mels + 2))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    ramps = edges[:, None] - bins[None]
    widths = np.diff(edges)
    triangles = np.maximum(0.0, np.minimum(-ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]))
    return np.asarray(triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None], dtype=np.float32)


def log10_mel(audio: Floats) -> Floats:
    """(n_samples,) audio in [-1, 1] at 16 kHz → (n_samples // 160, 80) log10 of mel power, floored at −10."""
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    padded = np.pad(audio, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH][: len(audio) // HOP_LENGTH]
    spectrum = np.fft.rfft(frames * window, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    return np.asarray(np.log10(np.maximum(power @ mel_filters().T, 1e-10)), dtype=np.float32)


def whisper_scale(raw: Floats) -> Floats:
    """`log10_mel`'s output → what Whisper's encoder hears: nothing more than 8 below the loudest, then (x + 4) / 4."""
    return np.asarray((np.maximum(raw, raw.max() - 8.0) + 4.0) / 4.0, dtype=np.float32)
