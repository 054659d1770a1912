"""Any audio file → blocks of 16 kHz mono float32 samples. Reads plain WAV here; FFmpeg decodes everything else.

soxr resamples. FFmpeg runs in another process, see decoder_client. The format is detected from the content, never from
the name. Memory is bounded: a declared length allocates nothing, and frames count only once they are decoded.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from service.audio.ffmpeg import FORMATS_READ
from service.audio.mixing import Mixer
from service.audio.sandbox import Limits
from service.audio.tags import id3_bytes
from service.audio.wav import ORDERS, PlainWav, open_wav
from service.errors import AudioTooLong, AudioTooShort, UnreadableAudio

if TYPE_CHECKING:
    from service.audio.decoder_client import Decoder

log = logging.getLogger("wisp")

SAMPLE_RATE = 16_000
MIN_SECONDS = 0.1
KEPT_SECONDS = 60  # up to a minute (3.8 MB) stays in memory; longer audio is decoded again for each reading
RATES = range(1_000, 384_001)  # Hz; anything else is a forged or broken header
MAX_CHANNELS = 32
MAX_VALUES_PER_SECOND = 192_000  # samples × channels; times the longest audio allowed, this bounds a decompression bomb
LOUDEST = 1e10  # a float sample beyond this isn't sound; its square must stay finite in float32
LOUD = 8.0  # float files with a higher peak (full scale is 1) contain integers and are scaled
MAX_TAGS = 8  # before the sound
MAX_RATE_CHANGES = 64  # in one file; each starts a new resampler
CPU_SHARE = 0.1  # CPU time for decoding, as a share of the longest audio accepted; a minute is added

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Audio:
    """Decoded audio: its length and its samples, which can be read repeatedly. Valid while its file is open."""

    duration: float  # seconds that could be decoded
    format: str  # "WAV", "FLAC", …
    _blocks: Callable[[], Iterable[Samples]]

    def blocks(self) -> Iterator[Samples]:
        """(n,) f32 blocks of 16 kHz mono, from the start. One reading at a time."""
        return iter(self._blocks())


def decode(
    file: BinaryIO,
    *,
    max_seconds: float = 7200.0,
    on_block: Callable[[float], None] = lambda seconds: None,
    limits: Limits | None = None,
) -> Audio:
    """Decode a whole file once, to check that it is audio and measure it.

    Channels are averaged; if they cancel each other out, the loudest is used. Float samples that are NaN, infinite or
    beyond `LOUDEST` become silence. Samples over full scale are kept, but a float file beyond `LOUD` is scaled by its
    peak. A truncated or damaged file gives whatever can be decoded. `file` must stay open, and only this Audio may read
    it. `on_block` is called with the seconds decoded so far, also while waiting; an exception from it ends the
    decoding.

    Raises UnreadableAudio, AudioTooShort (under `MIN_SECONDS`), AudioTooLong (over `max_seconds`, or the same amount of
    data at a higher rate and more channels) or DecoderLost.
    """
    limits = limits or Limits(cpu_s=round(60 + CPU_SHARE * max_seconds))
    kept: list[Samples] | None = []
    n_samples = last_rate = 0  # at the current rate
    duration = before = peak = 0.0  # before: seconds at earlier rates
    resample = Resampler()
    with closing(_opened(file, limits, lambda: on_block(duration))) as sound:
        for rate, channels, block in _mono(sound):
            if rate != last_rate:
                before, n_samples, last_rate = duration, 0, rate
            n_samples += block.shape[0]
            duration = before + n_samples / rate
            most_seconds = max_seconds * min(1.0, MAX_VALUES_PER_SECOND / (channels * rate))
            if duration > most_seconds:
                raise AudioTooLong(duration, most_seconds)
            on_block(duration)
            if sound.is_float:
                peak = max(peak, float(np.abs(block).max()))
            if duration > KEPT_SECONDS:
                kept = None
            if kept is not None:
                kept.append(resample(rate, block))
    if sound.lost:
        log.warning("the %s file is damaged: %s", sound.format, sound.lost)
    if duration < MIN_SECONDS:
        raise AudioTooShort(duration, MIN_SECONDS)
    gain = np.float32(1 / peak if peak > LOUD else 1)
    if kept is not None:
        samples = np.concatenate([*kept, resample.rest()]) * gain
        return Audio(duration, sound.format, lambda: (samples,))
    return Audio(duration, sound.format, lambda: _decode_again(file, limits, on_block, gain))


def _decode_again(
    file: BinaryIO, limits: Limits, on_block: Callable[[float], None], gain: np.float32
) -> Iterator[Samples]:
    """The 16 kHz mono blocks of a file that decode() has accepted."""
    n_samples, resample = 0, Resampler()
    with closing(_opened(file, limits, lambda: on_block(n_samples / SAMPLE_RATE))) as sound:
        for rate, _, block in _mono(sound):
            if (resampled := resample(rate, block)).size:
                n_samples += resampled.size
                yield resampled * gain
    yield resample.rest() * gain


def _opened(file: BinaryIO, limits: Limits, on_wait: Callable[[], None]) -> "PlainWav | Decoder":
    start = 0
    for _ in range(MAX_TAGS):
        file.seek(start)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        start += id3_bytes(head)
    if not head:
        raise UnreadableAudio(f"The file is empty. Formats read: {FORMATS_READ}.")
    if head[:4] in ORDERS and not start and (wav := open_wav(file, RATES, MAX_CHANNELS)):
        return wav
    from service.audio.decoder_client import Decoder  # imported here because `wisp transcribe` may not need it

    return Decoder(file, start, limits, on_wait)


def _mono(sound: "PlainWav | Decoder") -> Iterator[tuple[int, int, Samples]]:
    """(Hz, channels, (n,) f32 of one channel), … at the file's own rate, which may change."""
    mixer: Mixer | None = None
    shape, n_changes = (0, 0), -1
    for rate, block in sound.blocks():
        if shape != (rate, block.shape[1]):
            if mixer is not None:
                yield from ((*shape, mixed) for mixed in mixer.rest())
            n_changes += rate != shape[0]
            if n_changes > MAX_RATE_CHANGES:
                raise UnreadableAudio(
                    f"The {sound.format} file changes its sample rate more than {MAX_RATE_CHANGES} times."
                )
            shape = rate, block.shape[1]
            if rate not in RATES or shape[1] > MAX_CHANNELS:
                raise UnreadableAudio(
                    f"The {sound.format} file declares {rate} Hz and {shape[1]} channels; "
                    f"{RATES.start} to {RATES.stop - 1} Hz and up to {MAX_CHANNELS} channels are read."
                )
            mixer = Mixer(*shape)
        assert mixer is not None
        if not np.abs(block).max() <= LOUDEST:
            block = np.where(np.abs(block) <= LOUDEST, block, np.float32(0.0))
        yield from ((*shape, mixed) for mixed in mixer(block))
    if mixer is not None:
        yield from ((*shape, mixed) for mixed in mixer.rest())


class Resampler:
    """Blocks at a changing rate → blocks at one rate, 16 kHz; each rate is resampled as one signal."""

    def __init__(self, to: int = SAMPLE_RATE) -> None:
        self._to, self._rate, self._stream = to, to, None

    def __call__(self, rate: int, block: Samples) -> Samples:
        before = np.empty(0, np.float32)
        if rate != self._rate:
            before, self._rate = self.rest(), rate
            if rate != self._to:
                import soxr  # imported here because `wisp transcribe` may not need it

                self._stream = soxr.ResampleStream(rate, self._to, 1, "float32", "HQ")
        samples = block if self._stream is None else self._stream.resample_chunk(block)
        return np.concatenate([before, samples]) if before.size else samples

    def rest(self) -> Samples:
        """The samples left in the filter after the last block. A block after them is a signal of its own."""
        nothing = np.empty(0, np.float32)
        stream, self._rate, self._stream = self._stream, self._to, None
        return nothing if stream is None else stream.resample_chunk(nothing, last=True)
