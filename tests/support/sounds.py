"""Sound for the decoding tests: generates, encodes and compares it."""

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from service.audio.decode import Audio, decode
from service.audio.log_mel import SAMPLE_RATE
from service.errors import RequestError

Floats = NDArray[np.float32]


def speechlike(rate: int, channels: int, seconds: float = 1.0) -> NDArray[np.float64]:
    """(n, channels) chirp from 200 Hz to 1.2 kHz, the same in every channel."""
    time = np.arange(round(rate * seconds)) / rate
    chirp = 0.5 * np.sin(2 * np.pi * (200 + 500 * time / seconds) * time)
    return np.repeat(chirp[:, None], channels, axis=1)


def encoded(sound: NDArray[Any], rate: int, format: str, subtype: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, sound.shape[1], format=format, subtype=subtype, **options) as out:
        for start in range(0, sound.shape[0], rate):  # libsndfile's encoders overflow their stack on long writes
            out.write(sound[start : start + rate])
    return file.getvalue()


def samples(audio: Audio) -> Floats:
    return np.concatenate(list(audio.blocks()))


def similarity(one: NDArray[Any], other: NDArray[Any], within: int = 1200) -> float:
    """The best correlation of two sounds over delays of up to `within` samples either way."""
    n = min(one.shape[0], other.shape[0])
    size = 1 << (2 * n - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(one[:n], size).conj() * np.fft.rfft(other[:n], size), size)
    near = np.concatenate([product[: within + 1], product[-within:]])
    return float(near.max() / (np.linalg.norm(one[:n]) * np.linalg.norm(other[:n])))


def cuts(size: int, dense: int) -> Iterator[int]:
    """Every length up to `dense`, then some up to the whole."""
    yield from range(min(dense, size))
    yield from range(dense, size, max(1, (size - dense) // 25))


def decodes_or_is_refused(data: bytes) -> float | None:
    """Seconds, or None if rejected as the user's mistake; anything else raises."""
    try:
        audio = decode(io.BytesIO(data), max_seconds=600)
        sound = samples(audio)
    except RequestError as error:
        assert 400 <= error.status < 500 and error.param == "file" and len(str(error)) < 400
        return None
    assert np.isfinite(sound).all()
    return audio.duration


class FailingDisk(io.BytesIO):
    """A file that cannot be read past its first half."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > len(self.getbuffer()) // 2:
            raise OSError(5, "Input/output error")
        return super().read(size)


def pink_noise(seconds: float, level: float, seed: int = 0) -> Floats:
    """Noise with as much power in every octave; `level`: its root mean square."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE)))
    sound = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), round(seconds * SAMPLE_RATE))
    return _at_level(sound, level)


def _at_level(sound: NDArray[np.float64], level: float) -> Floats:
    return np.asarray(sound * (level / np.sqrt(np.mean(np.square(sound)))), np.float32)


def without_speech(seconds: float) -> dict[str, Floats]:
    """Sounds of all kinds without speech, by name."""
    rng, time = np.random.default_rng(0), np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    white = rng.standard_normal(time.size)
    hum = sum(np.sin(2 * np.pi * 50 * k * time + k) / k for k in (1, 2, 3, 5, 7))
    hum60 = sum(np.sin(2 * np.pi * 60 * k * time + k) / k for k in (1, 2, 3, 5, 7))
    fan = pink_noise(seconds, 1.0) * (1 + 0.3 * np.sin(2 * np.pi * 11 * time)) + 0.3 * np.sin(2 * np.pi * 90 * time)
    sweep = np.sin(2 * np.pi * 50 * (140 ** (time / seconds) - 1) * seconds / math.log(140))
    clicks = (np.arange(time.size) % 8000 < 40) * (-1.0) ** np.arange(time.size)
    rain, applause, dtmf, music = 0.15 * white, np.zeros(time.size), np.zeros(time.size), np.zeros(time.size)
    for at in rng.integers(0, time.size - 2000, round(200 * seconds)):
        rain[at : at + 400] += rng.standard_normal(400) * np.exp(-np.arange(400) / rng.uniform(20, 90))
    for at in rng.integers(0, time.size - 2000, round(60 * seconds)):
        applause[at : at + 2000] += rng.standard_normal(2000) * np.exp(-np.arange(2000) / rng.uniform(80, 300))
    for at in range(0, time.size - 3200, 3200):
        low, high = rng.choice([697, 770, 852, 941]), rng.choice([1209, 1336, 1477, 1633])
        dtmf[at : at + 1600] = np.sin(2 * np.pi * low * time[:1600]) + np.sin(2 * np.pi * high * time[:1600])
    fade = np.exp(-3 * time[:SAMPLE_RATE])
    for second in range(int(seconds) - 1):  # chords, a melody and drums
        beat = music[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE]
        for semitone in ((0, 4, 7), (5, 9, 12), (7, 11, 14), (0, 4, 7))[second // 2 % 4]:
            beat += np.sin(2 * np.pi * 261.6 * 2 ** (semitone / 12) * time[:SAMPLE_RATE]) * fade
        for quarter, semitone in enumerate(rng.choice([0, 2, 4, 5, 7, 9], 4)):
            note = beat[quarter * 4000 : (quarter + 1) * 4000]
            note += np.sin(2 * np.pi * 523.2 * 2 ** (semitone / 12) * time[:4000]) * fade[:4000]
            note[:800] += rng.standard_normal(800) * fade[:800] ** 20
    return {
        "zeros": np.zeros(time.size, np.float32),
        "white noise": _at_level(white, 0.01),
        "faint white noise": _at_level(white, 0.0001),
        "loud pink noise": pink_noise(seconds, 0.3),
        "hum of 50 Hz": _at_level(np.asarray(hum), 0.1),
        "hum of 60 Hz, faint": _at_level(np.asarray(hum60), 0.001),
        "fan": _at_level(fan, 0.03),
        "sweep": _at_level(sweep, 0.05),
        "clicks": _at_level(clicks, 0.02),
        "rain": _at_level(rain, 0.05),
        "applause": _at_level(applause, 0.1),
        "DTMF": _at_level(dtmf, 0.1),
        "music": _at_level(music, 0.1),
    }
