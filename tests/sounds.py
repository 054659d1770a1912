"""Sound for the tests of decoding: made, encoded, compared."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from service.audio import Audio, decode
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
    """Seconds, or None when refused as the user's mistake; anything else raises."""
    try:
        audio = decode(io.BytesIO(data), max_seconds=600)
        sound = samples(audio)
    except RequestError as error:
        assert 400 <= error.status < 500 and error.param == "file" and len(str(error)) < 400
        return None
    assert np.isfinite(sound).all()
    return audio.duration


class FailingDisk(io.BytesIO):
    """A file that cannot be read behind its first half."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > len(self.getbuffer()) // 2:
            raise OSError(5, "Input/output error")
        return super().read(size)
