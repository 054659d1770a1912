"""Any audio file → 16 kHz mono float32 samples in blocks: libsndfile (or FFmpeg) decodes, soxr resamples.

Memory is bounded, whatever a header claims. The content decides the format, never the name. Nothing is allocated by a
declared length: frames count when they have been decoded.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from service import av_audio
from service.c_stderr import c_stderr_closed
from service.errors import AudioTooLong, AudioTooShort, UnreadableAudio
from service.mp3 import promise_frames
from service.ogg import links

SAMPLE_RATE = 16_000
MIN_SECONDS = 0.1
KEPT_SECONDS = 60  # up to a minute (3.8 MB) stays in memory as it is decoded; more is decoded again for each reading
BLOCK_VALUES = 1 << 16  # samples × channels read at once: 256 KiB
RATES = range(1_000, 384_001)  # Hz; outside is a forged or broken header
MAX_CHANNELS = 32
MAX_VALUES_PER_SECOND = 192_000  # samples × channels, times the longest audio allowed: bounds a bomb's work
LOUDEST = 1e9  # beyond this a float sample is no sound (full scale is 1); its square must stay finite in float32
MAX_TAGS = 8  # in front of the sound
FORMATS_READ = "WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF, AU and CAF"  # without the extra [av]

Samples = NDArray[np.float32]

# (offset, bytes, format). The first row that fits tells the format.
_READ: tuple[tuple[int, bytes, str], ...] = (
    (8, b"WAVE", "WAV"),  # after RIFF, RIFX or RF64
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "OGG"),
    (8, b"AIFF", "AIFF"),
    (8, b"AIFC", "AIFF"),
    (0, b".snd", "AU"),
    (0, b"dns.", "AU"),
    (0, b"caff", "CAF"),
)
# With the extra [av] only: keys of av_audio.DEMUXERS, but for ADIF, which FFmpeg does not read either.
_READ_BY_AV: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "MP4/M4A"),
    (4, b"moov", "MP4/M4A"),  # QuickTime's older files
    (4, b"mdat", "MP4/M4A"),
    (4, b"wide", "MP4/M4A"),
    (0, b"\x1aE\xdf\xa3", "WebM/Matroska"),
    (0, b"ADIF", "ADIF"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA/ASF"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x00\x00\x01\xba", "MPEG"),
    (8, b"AVI ", "AVI"),
)


class _Source:
    """A file as libsndfile's callbacks read it: an exception inside one would be printed, so it is kept for later."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0
        self._first = b""
        self._start = 0
        self.size = file.seek(0, io.SEEK_END)
        self.failure: Exception | None = None

    def show(self, first: bytes, start: int, end: int) -> None:
        """From now on be a file of `first` and then the bytes from `start` to `end`, offsets in the real file."""
        self._first, self._start, self._position = first, start, 0
        self.size = len(first) + end - start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = min(max(0, start + offset), self.size)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> bytes:
        count = min(count, self.size - self._position)
        data = self._first[self._position : self._position + count]
        if not data:
            try:
                self._file.seek(self._position - len(self._first) + self._start)
                data = self._file.read(count)
            except Exception as error:
                self.failure = error
                return b""
        self._position += len(data)
        return data

    def read_at(self, offset: int, count: int) -> bytes:
        self.seek(offset)
        return self.read(count)


class _Sound(soundfile.SoundFile):  # type: ignore[misc, unused-ignore]
    """A sound file read once, front to back: soundfile else seeks after every block, and MP3 and OGG start over."""

    def seekable(self) -> bool:
        return False

    def readings(self) -> Iterator[Samples]:
        values = np.empty((BLOCK_VALUES // self.channels, self.channels), np.float32)
        while True:
            values.fill(0.0)
            try:
                with _quiet(self.format == "MP3"):
                    n = self.buffer_read_into(values, "float32")
                failed = False
            except soundfile.LibsndfileError:
                # How much came before the fault is not told: what is not zero did.
                n = int(np.flatnonzero(values.any(axis=1))[-1:].sum()) + 1 if values.any() else 0
                failed = True
            if n == 0:
                return
            yield values[:n]
            if failed:
                return


class _Decoder(Protocol):
    """One recording at one rate, as it is decoded."""

    @property
    def samplerate(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def readings(self) -> Iterator[Samples]:
        """(n, channels) f32 blocks, until decoding ends, in order or not."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Audio:
    """Decoded audio: its length and, as often as asked, its samples. Valid while the file it came from is open."""

    duration: float  # seconds, of what could be decoded
    format: str  # "WAV", "FLAC", …
    _blocks: Callable[[], Iterable[Samples]]

    def blocks(self) -> Iterator[Samples]:
        """(n,) f32 blocks of 16 kHz mono, from the start. One reading at a time."""
        return iter(self._blocks())


def decode(
    file: BinaryIO, *, max_seconds: float = 7200.0, on_block: Callable[[float], None] = lambda seconds: None
) -> Audio:
    """Read a whole file once, from its start, to know that it is audio, and how much.

    Channels are averaged. A float sample that is not a number, infinite or beyond `LOUDEST` counts as silence; one
    over full scale is kept. A file that ends early or is damaged inside gives what can be decoded. `file` must stay
    open, and only this Audio may read it. `on_block` is called with the seconds decoded so far, and what it raises ends
    the decoding.

    Raises UnreadableAudio, AudioTooShort (under `MIN_SECONDS`) or AudioTooLong (over `max_seconds`, or so many
    channels and so high a rate that it decodes to as much data).
    """
    source = _Source(file)
    kind, start = _sniff(source)
    kept: list[Samples] | None = []
    duration = 0.0
    for sound in _sounds(source, kind, start):
        rate = sound.samplerate
        most_seconds = max_seconds * min(1.0, MAX_VALUES_PER_SECOND / (sound.channels * rate))
        resample = _Resampler(rate)
        before, n_frames = duration, 0
        for block in _mono(sound):
            n_frames += block.shape[0]
            duration = before + n_frames / rate
            if duration > most_seconds:
                raise AudioTooLong(duration, most_seconds)
            on_block(duration)
            if duration > KEPT_SECONDS:
                kept = None
            if kept is not None:
                kept.append(resample(block))
        if kept is not None:
            kept.append(resample.rest())
    _raise_failure(source)
    if duration < MIN_SECONDS:
        raise AudioTooShort(duration, MIN_SECONDS)
    if kept is not None:
        samples = np.concatenate(kept)
        return Audio(duration, kind, lambda: (samples,))
    return Audio(duration, kind, lambda: _decode_again(file))


def _decode_again(file: BinaryIO) -> Iterator[Samples]:
    """The 16 kHz mono blocks of a file that decode() has accepted."""
    source = _Source(file)
    for sound in _sounds(source, *_sniff(source)):
        resample = _Resampler(sound.samplerate)
        for block in _mono(sound):
            if (resampled := resample(block)).size:
                yield resampled
        yield resample.rest()
    _raise_failure(source)


def _raise_failure(source: _Source) -> None:
    """A file that could not be read is the server's trouble, not the audio's."""
    if source.failure is not None:
        raise source.failure


def _sniff(source: _Source) -> tuple[str, int]:
    """The format of the content, and where it starts behind its tags. UnreadableAudio for one that is not read here."""
    start = 0
    head = source.read_at(0, 16)
    for _ in range(MAX_TAGS):  # ID3: a length in 4 × 7 bits, in front of MP3, FLAC or AAC
        if head[:3] != b"ID3" or len(head) < 10:
            break
        length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        start += 10 + length + (10 if head[5] & 0x10 else 0)
        head = source.read_at(start, 16)
    _raise_failure(source)
    for offset, magic, kind in _READ:
        if head[offset : offset + len(magic)] == magic:
            return kind, start
    for offset, magic, kind in _READ_BY_AV:
        if head[offset : offset + len(magic)] == magic:
            return _read_by_av(kind), start
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return _read_by_av("AAC"), start
    if start or (len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06):
        return "MP3", start
    if not head:
        raise UnreadableAudio(f"The file is empty. Formats read: {_formats_read()}.")
    raise UnreadableAudio(f"The file's format is not known. Formats read: {_formats_read()}.")


def _formats_read() -> str:
    return f"{FORMATS_READ}; {av_audio.FORMATS}" if av_audio.is_installed() else FORMATS_READ


def _read_by_av(kind: str) -> str:
    """`kind`, where it can be read here."""
    if kind not in av_audio.DEMUXERS:
        raise UnreadableAudio(f"{kind} audio is not read. Formats read: {_formats_read()}.")
    if not av_audio.is_installed():
        raise UnreadableAudio(
            f"{kind} audio needs the optional extra [av], which is not installed here (pip install 'wisp[av]'). "
            f"Formats read: {FORMATS_READ}."
        )
    return kind


def _sounds(source: _Source, kind: str, start: int) -> Iterator[_Decoder]:
    """The recordings in the file, nearly always one, each to be read before the next and closed after it.

    Raises UnreadableAudio if the first cannot be opened; another such is passed over.
    """
    is_first = True
    for sound in _opened(source, kind, start):
        try:
            if sound.samplerate in RATES and 1 <= sound.channels <= MAX_CHANNELS:
                yield sound
            elif is_first:
                raise UnreadableAudio(
                    f"The {kind} file declares {sound.samplerate} Hz and {sound.channels} channels; "
                    f"{RATES.start} to {RATES.stop - 1} Hz and up to {MAX_CHANNELS} channels are read."
                )
        finally:
            sound.close()
        is_first = False


def _opened(source: _Source, kind: str, start: int) -> Iterator[_Decoder]:
    size = source.size
    if kind in av_audio.DEMUXERS:
        source.show(b"", start, size)
        yield from av_audio.parts(source, kind)
        return
    parts = [(b"", 0, size)]
    if kind == "OGG":
        parts = [(b"", *link) for link in links(source.read_at, size)]
    elif kind == "MP3":
        first, go_on = promise_frames(source.read_at, start, size)
        parts = [(first, go_on, size)]
    for part in parts:
        source.show(*part)
        try:
            sound = _open(source, kind)
        except UnreadableAudio as error:
            if part is not parts[0]:
                continue
            if kind not in av_audio.RARE or not av_audio.is_installed():
                raise
            source.show(b"", 0, size)
            try:
                yield from av_audio.parts(source, kind)
            except UnreadableAudio:
                raise error from None
            return
        yield sound


def _open(source: _Source, kind: str) -> _Sound:
    try:
        with _quiet(kind == "MP3"):
            return _Sound(source)
    except soundfile.LibsndfileError as error:
        _raise_failure(source)
        raise UnreadableAudio(
            f"The {kind} file cannot be read: it is damaged, cut off in its header, or its encoding is not supported "
            f"({error.error_string.rstrip('.')}). Formats read: {_formats_read()}."
        ) from error


def _quiet(is_mp3: bool) -> AbstractContextManager[None]:
    return c_stderr_closed() if is_mp3 else nullcontext()


def _mono(sound: _Decoder) -> Iterator[Samples]:
    """(n,) f32 blocks at the file's own rate, channels averaged."""
    for block in sound.readings():
        if not np.abs(block).max() <= LOUDEST:
            block = np.where(np.abs(block) <= LOUDEST, block, np.float32(0.0))
        yield block.mean(axis=1, dtype=np.float32)


class _Resampler:
    """Blocks at `rate` → blocks at 16 kHz, as one signal."""

    def __init__(self, rate: int) -> None:
        self._stream = None
        if rate != SAMPLE_RATE:
            import soxr  # here, as a start of `wisp transcribe` may not need it

            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, "float32", "HQ")

    def __call__(self, block: Samples) -> Samples:
        return block if self._stream is None else self._stream.resample_chunk(block)

    def rest(self) -> Samples:
        """What the filter still holds after the last block."""
        nothing = np.empty(0, np.float32)
        return nothing if self._stream is None else self._stream.resample_chunk(nothing, last=True)
