"""A live session's audio: 16-bit PCM or G.711, split anywhere → 16 kHz float32 in blocks of up to 1 s."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.audio.decode import Resampler
from service.audio.pcm import WholeFrames

Samples = NDArray[np.float32]
G711_RATE = 8000
BLOCK_S = 1.0


@dataclass(frozen=True)
class Format:
    """`type`: as in session.update. `rate`: samples a second."""

    type: str
    rate: int

    @property
    def n_bytes(self) -> int:
        """Bytes per sample."""
        return 2 if self.type == PCM else 1


PCM, ULAW, ALAW = "audio/pcm", "audio/pcmu", "audio/pcma"
DEFAULT = Format(PCM, 24_000)


def _ulaw() -> Samples:
    """(256,) the samples of G.711's µ-law bytes."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    size = ((((code & 15) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84
    return np.asarray(np.where(code & 0x80, -size, size) / 32768, np.float32)


def _alaw() -> Samples:
    """(256,) the samples of G.711's A-law bytes."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    exponent = (code >> 4) & 7
    size = (((code & 15) << 4) + np.where(exponent > 0, 0x108, 8)) << np.maximum(exponent - 1, 0)
    return np.asarray(np.where(code & 0x80, size, -size) / 32768, np.float32)


_TABLES = {ULAW: _ulaw(), ALAW: _alaw()}


class Decoder:
    """One session's bytes, in order. The format may change at any time."""

    def __init__(self, format: Format = DEFAULT) -> None:
        self._format, self._whole = format, WholeFrames()
        self._resample = Resampler()

    def set_format(self, format: Format) -> None:
        """Set the format of the next bytes."""
        if format != self._format:
            self._format = format
            self._whole.clear()

    def blocks(self, data: bytes) -> Iterator[Samples]:
        """The next bytes → (n,) f32 blocks of 16 kHz. The last few milliseconds come with the next bytes, or rest()."""
        size = int(BLOCK_S * self._format.rate) * self._format.n_bytes
        whole = self._whole.take(data, self._format.n_bytes)
        for first in range(0, len(whole), size):
            samples = self._resample(self._format.rate, self._samples(whole[first : first + size]))
            if samples.size:
                yield samples

    def rest(self) -> Samples:
        """What is left in the resampler; the next bytes are a signal of their own."""
        self._whole.clear()
        return self._resample.rest()

    def _samples(self, data: bytes) -> Samples:
        if self._format.type == PCM:
            return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        samples: Samples = _TABLES[self._format.type][np.frombuffer(data, np.uint8)]
        return samples
