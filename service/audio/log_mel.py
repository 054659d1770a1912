"""Samples → log-mel: openai/whisper's `audio.py` in NumPy, in one piece or as a stream of frames with bounded memory.

A frame is 25 ms (`N_FFT` samples) around every 10 ms (`HOP_LENGTH`), its power spectrum weighed by Slaney's mel
filters, as log10 within eight decades of the loudest value of the whole recording. Source: openai/whisper 20250625
`log_mel_spectrogram`, librosa `filters.mel`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
N_FFT = 400  # 25 ms window
HOP_LENGTH = 160  # 10 ms step
CHUNK_SECONDS = 30
N_SAMPLES = (
    CHUNK_SECONDS * SAMPLE_RATE
)  # 480_000 zeros follow the content where the stream's last frames look past its end
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH  # 100
KEPT_FRAMES = 300 * FRAMES_PER_SECOND  # 5 minutes, 9.6 MB at 80 mels: longer audio is read twice instead of kept
BLOCK_FRAMES = 256  # frames transformed at once: 0.4 MB of windows and as much of spectrum stay in a core's cache

# Products above this size OpenBLAS gives to all cores, which wait for each other: on a busy machine 10 times as long.
SMALL_PRODUCT = 1 << 18

Samples = NDArray[np.float32]
Mel = NDArray[np.float32]


@lru_cache(maxsize=4)
def mel_filters(n_mels: int) -> Mel:
    """(n_mels, 201) triangles of equal area on Slaney's scale, as `librosa.filters.mel(sr=16000, n_fft=400)`.

    The scale is linear below 1 kHz (3 mels per 200 Hz) and logarithmic above (27 mels per factor of 6.4).
    """
    linear, log_start, log_step = 200 / 3, 1000.0, np.log(6.4) / 27  # Hz per mel, Hz, log(Hz) per mel
    first_log_mel = log_start / linear
    top = first_log_mel + np.log(SAMPLE_RATE / 2 / log_start) / log_step
    mels = np.linspace(0.0, top, n_mels + 2)
    corners = np.where(
        mels < first_log_mel,
        mels * linear,
        log_start * np.exp(log_step * (np.maximum(mels, first_log_mel) - first_log_mel)),
    )
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    distance = corners[:, None] - bins  # (n_mels + 2, 201) Hz
    width = np.diff(corners)[:, None]
    triangles = np.maximum(0.0, np.minimum(-distance[:-2] / width[:-1], distance[2:] / width[1:]))
    filters: Mel = (triangles * (2.0 / (corners[2:] - corners[:-2]))[:, None]).astype(np.float32)
    filters.flags.writeable = False
    return filters


@lru_cache(maxsize=1)
def _window() -> Mel:
    """(400,) periodic Hann window, as `torch.hann_window`."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)


def _log_power(padded: Samples, n_frames: int, n_mels: int) -> Mel:
    """((n_frames − 1)·160 + 400 or more,) samples → (n_frames, n_mels) log10 of mel power, at least −10."""
    out = np.empty((n_frames, n_mels), np.float32)
    if n_frames == 0:
        return out
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH]
    window, filters = _window(), mel_filters(n_mels).T
    rows = max(1, SMALL_PRODUCT // filters.size)
    for start in range(0, n_frames, BLOCK_FRAMES):
        stop = min(start + BLOCK_FRAMES, n_frames)
        spectrum = np.fft.rfft(frames[start:stop] * window)  # float32 in, complex64 out
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        whole = power.shape[0] // rows * rows
        batches, sums = power[:whole].reshape(-1, rows, power.shape[1]), out[start : start + whole]
        np.matmul(batches, filters, out=sums.reshape(-1, rows, n_mels))
        np.matmul(power[whole:], filters, out=out[start + whole : stop])
    np.maximum(out, 1e-10, out=out)
    return np.log10(out, out=out)


def _normalise(log_power: Mel, loudest: float) -> Mel:
    """Eight decades below `loudest` at most, then (x + 4) / 4, in place."""
    np.maximum(log_power, np.float32(loudest) - np.float32(8.0), out=log_power)
    log_power += np.float32(4.0)
    log_power /= np.float32(4.0)
    return log_power


def log_mel_spectrogram(samples: Samples, n_mels: int) -> Mel:
    """(n_samples,) f32 at 16 kHz, as it is → (n_mels, n_samples // 160) log-mel, C-contiguous. The edges are mirrored.

    ValueError for 200 samples or fewer: there is nothing to mirror.
    """
    if samples.ndim != 1 or samples.shape[0] <= N_FFT // 2:
        raise ValueError(f"log-mel needs one row of more than {N_FFT // 2} samples, got shape {samples.shape}")
    padded = np.pad(samples.astype(np.float32, copy=False), N_FFT // 2, mode="reflect")
    log_power = _log_power(padded, samples.shape[0] // HOP_LENGTH, n_mels)
    return np.ascontiguousarray(_normalise(log_power, float(log_power.max())).T)


@dataclass(frozen=True)
class LogMelFrames:
    """A recording's frames of content, as transcribe() sees them, to be read once; and what silence is among them."""

    frames: Iterator[Mel]  # (k, n_mels) f32 C-contiguous, n_samples // 160 frames in all; no block shorter than a frame
    silence: float  # the value of every band of a frame of digital silence

    def __iter__(self) -> Iterator[Mel]:
        return self.frames


def log_mel_frames(
    blocks: Callable[[], Iterable[Samples]], n_mels: int, *, kept_frames: int = KEPT_FRAMES
) -> LogMelFrames:
    """Read a recording for its loudest value, which every frame refers to, and get its frames ready.

    They equal `log_mel_spectrogram(audio, padding=N_SAMPLES)` without its last 3000 frames: 30 s of zeros follow the
    audio. `blocks` gives the audio's samples from the start each time it is called: once, at once, where all frames fit
    in `kept_frames`, else again as the frames are read, so that hours need no more memory than minutes. It may raise.
    """
    kept: list[Mel] | None = []
    n_kept = 0
    loudest = np.float32(-10.0)
    for log_power, n_content in _stream(blocks(), n_mels):
        loudest = max(loudest, log_power.max(initial=loudest))
        if kept is not None:
            kept.append(log_power[:n_content])
            n_kept += n_content
            if n_kept > kept_frames:
                kept = None
    again = kept if kept is not None else (log_power[:n_content] for log_power, n_content in _stream(blocks(), n_mels))
    frames = (_normalise(log_power, float(loudest)) for log_power in again if log_power.shape[0])
    silence = _normalise(np.full((1, 1), -10.0, np.float32), float(loudest))
    return LogMelFrames(frames, float(silence[0, 0]))


def _stream(blocks: Iterable[Samples], n_mels: int) -> Iterator[tuple[Mel, int]]:
    """Un-normalised frames ((k, n_mels), how many are content): the last few count for the loudest value only."""
    half = N_FFT // 2
    piece = BLOCK_FRAMES * HOP_LENGTH
    waiting: list[Samples] = []
    n_waiting = n_samples = n_done = 0
    first = True
    for block in blocks:
        waiting.append(block)
        n_waiting += block.shape[0]
        n_samples += block.shape[0]
        if n_waiting < piece + N_FFT:
            continue
        samples = np.concatenate(waiting)
        if first:
            samples, first = np.concatenate((samples[half:0:-1], samples)), False
        n_frames = (samples.shape[0] - N_FFT) // HOP_LENGTH + 1
        yield _log_power(samples, n_frames, n_mels), n_frames
        n_done += n_frames
        waiting = [samples[n_frames * HOP_LENGTH :].copy()]
        n_waiting = waiting[0].shape[0]
    samples = np.concatenate([*waiting, np.zeros(N_FFT + HOP_LENGTH, np.float32)])
    if first:
        samples = np.concatenate((samples[half:0:-1], samples))
    n_frames = -(-(n_samples + half) // HOP_LENGTH) - n_done  # every frame that sees a sample
    yield _log_power(samples, n_frames, n_mels), n_samples // HOP_LENGTH - n_done
