"""Samples → log-mel: openai/whisper's `audio.py` in NumPy, as one array or as a stream of frames with bounded memory.

A frame covers 25 ms (`N_FFT` samples) around every 10 ms (`HOP_LENGTH`). Its power spectrum is weighted by Slaney's mel
filters; its log10 is limited to eight decades below the maximum of the whole recording. Sources: openai/whisper
20250625 `log_mel_spectrogram`, librosa `filters.mel`.
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
N_SAMPLES = CHUNK_SECONDS * SAMPLE_RATE  # 480_000 zeros follow the content, for the last frames of the stream
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH  # 100
KEPT_FRAMES = 300 * FRAMES_PER_SECOND  # 5 minutes, 9.6 MB at 80 mels; longer audio is read twice instead
BLOCK_FRAMES = 256  # frames per transform: 0.4 MB of windows and as much of spectrum fit into a core's cache

# OpenBLAS splits larger products over all cores, which wait for each other: 10 times as long on a busy machine.
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
    """Limit to eight decades below `loudest`, then (x + 4) / 4, in place."""
    np.maximum(log_power, np.float32(loudest) - np.float32(8.0), out=log_power)
    log_power += np.float32(4.0)
    log_power /= np.float32(4.0)
    return log_power


def log_mel_spectrogram(samples: Samples, n_mels: int) -> Mel:
    """(n_samples,) f32 at 16 kHz → (n_mels, n_samples // 160) log-mel, C-contiguous. Mirrors the edges, pads nothing.

    ValueError for 200 samples or fewer, which are too few to mirror.
    """
    if samples.ndim != 1 or samples.shape[0] <= N_FFT // 2:
        raise ValueError(f"log-mel needs one row of more than {N_FFT // 2} samples, got shape {samples.shape}")
    padded = np.pad(samples.astype(np.float32, copy=False), N_FFT // 2, mode="reflect")
    log_power = _log_power(padded, samples.shape[0] // HOP_LENGTH, n_mels)
    return np.ascontiguousarray(_normalise(log_power, float(log_power.max())).T)


@dataclass(frozen=True)
class LogMelFrames:
    """A recording's content frames, as transcribe() takes them, to be read once, and their value for silence."""

    frames: Iterator[Mel]  # (k, n_mels) f32 C-contiguous, n_samples // 160 in total; each block has one or more
    silence: float  # the value of every band in a frame of digital silence

    def __iter__(self) -> Iterator[Mel]:
        return self.frames


def log_mel_frames(
    blocks: Callable[[], Iterable[Samples]], n_mels: int, *, kept_frames: int = KEPT_FRAMES
) -> LogMelFrames:
    """Read a recording to find its maximum, to which all frames relate, and prepare its frames.

    They equal `log_mel_spectrogram(audio, padding=N_SAMPLES)` without its last 3000 frames: 30 s of zeros follow the
    audio. Each call of `blocks` gives the audio's samples from the start. It is called once, immediately, if all frames
    fit in `kept_frames`, else again while the frames are read, so that hours need no more memory than minutes. It may
    raise.
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
    """Un-normalised frames ((k, n_mels), how many are content); the last few only count towards the maximum."""
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
    n_frames = -(-(n_samples + half) // HOP_LENGTH) - n_done  # all frames that overlap a sample
    yield _log_power(samples, n_frames, n_mels), n_samples // HOP_LENGTH - n_done
