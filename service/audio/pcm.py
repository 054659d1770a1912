"""Raw PCM in pieces of any length → mono blocks of one rate, as live sources and clients send it."""

from dataclasses import dataclass

import numpy as np

from service.audio.decode import MAX_CHANNELS, RATES, SAMPLE_RATE, Resampler, Samples
from service.audio.mixing import Mixer

WIDTHS = (1, 2, 3, 4)  # bytes


@dataclass(frozen=True)
class PcmFormat:
    """Interleaved little-endian integers: samples a second, bytes of a sample, channels. 8 bits are unsigned.

    Raises ValueError with one sentence.
    """

    rate: int = SAMPLE_RATE
    width: int = 2
    channels: int = 1

    def __post_init__(self) -> None:
        if self.rate not in RATES:
            raise ValueError(
                f"The sample rate is {self.rate} Hz; it must be from {RATES.start} to {RATES.stop - 1} Hz."
            )
        if self.width not in WIDTHS:
            raise ValueError(f"A sample has {self.width} bytes; it must have 1 to {WIDTHS[-1]}.")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ValueError(f"The audio has {self.channels} channels; it must have 1 to {MAX_CHANNELS}.")

    @property
    def frame_bytes(self) -> int:
        """The bytes of one sample of every channel."""
        return self.width * self.channels


class WholeFrames:
    """Cuts bytes that arrive in pieces of any length after whole frames."""

    def __init__(self) -> None:
        self._part = b""  # of an incomplete frame

    def take(self, data: bytes, frame_bytes: int) -> bytes:
        """The next piece → the frames that are complete; the rest comes with the next piece."""
        data = self._part + data
        whole = len(data) - len(data) % frame_bytes
        self._part = data[whole:]
        return data[:whole]

    def clear(self) -> None:
        """Drop an incomplete frame."""
        self._part = b""


class PcmDecoder:
    """One stream's bytes, in order. Its format may change between two pieces."""

    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        """`rate`: of the result."""
        self._format: PcmFormat | None = None
        self._frames = WholeFrames()
        self._resample = Resampler(rate)

    def __call__(self, format: PcmFormat, data: bytes) -> Samples:
        """The next piece → (n,) f32. The last few milliseconds come with the next piece, or with rest()."""
        if format != self._format:
            self._format = format
            self._frames.clear()
            self._mix = Mixer(format.rate, format.channels)
        whole = self._frames.take(data, format.frame_bytes)
        frames = _floats(whole, format.width).reshape(-1, format.channels)
        mixed = [*self._mix(frames), *self._mix.rest()]
        return self._resample(format.rate, np.concatenate(mixed)) if mixed else np.empty(0, np.float32)

    def rest(self) -> Samples:
        """What is left in the resampler; the next bytes are a signal of their own."""
        self._frames.clear()
        return self._resample.rest()


def _floats(data: bytes, width: int) -> Samples:
    """Integers → f32 within ±1."""
    if width == 1:
        data = (np.frombuffer(data, np.uint8) ^ 128).tobytes()
    if width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = padded.tobytes(), 4
    samples: Samples = np.frombuffer(data, f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))
    return samples
