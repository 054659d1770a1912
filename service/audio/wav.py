"""Reads plain WAV files, the most common upload: PCM of 8 to 32 bits, float, A-law, µ-law. FFmpeg reads the others.

A header's lengths are not trusted. If the sound's size is 0 (programs that cannot seek back write that) or exceeds the
file, or if a second or more follows it that is neither a chunk nor another file, the sound goes on to the next file or
to this one's end. WAV files joined end to end are read as one. Sources: RFC 2361, Microsoft's description of RIFF.
"""

import io
import re
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.audio.joined import NO_SOUND, UNKNOWN_SIZES, behind_zeros, is_frames, is_head, next_file
from service.audio.tags import behind_tags

BLOCK_VALUES = 1 << 16  # samples × channels per read
MAX_CHUNKS = 1000  # per file; FFmpeg, in its own process, reads files with more
MAX_PARTS = 16  # per file as well
LOST_BYTES = 1024  # shorter rests after the sound are not logged
# The first bytes of AC-3, DTS (16 and 14 bits) and S/PDIF in either byte order: some files store these as PCM.
_SYNC = re.compile(
    rb"\x0bw|w\x0b|\x7f\xfe\x80\x01|\xfe\x7f\x01\x80|\x1f\xff\xe8\0|\xff\x1f\0\xe8|\x72\xf8\x1f\x4e|\xf8\x72\x4e\x1f"
)
_EXTENSIBLE = 0xFFFE
_FLOATS = ("FLOAT", "DOUBLE")
_SUBTYPES = {  # (format tag, bits) → libsndfile's name
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}

Floats = NDArray[np.float32]
Order = Literal["little", "big"]
ORDERS: dict[bytes, Order] = {b"RIFF": "little", b"RIFX": "big"}


class _Part(NamedTuple):
    """One recording: its encoding and the position of its samples in the file."""

    rate: int
    channels: int
    subtype: str
    bits: int
    order: Order
    start: int
    end: int
    is_open: bool  # the header does not say where it ends

    @property
    def frame_bytes(self) -> int:
        """The bytes of one sample of every channel."""
        return self.channels * self.bits // 8


class PlainWav:
    """A file of plain WAV recordings, nearly always one."""

    format = "WAV"

    def __init__(self, file: BinaryIO, parts: list[_Part], n_left: int) -> None:
        self._file, self._parts = file, parts
        self.lost = f"{n_left} bytes after the sound are not sound" if n_left >= LOST_BYTES else ""
        self.is_float = any(part.subtype in _FLOATS for part in parts)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """(Hz, (n, channels) f32), … in order."""
        import soundfile  # libsndfile converts samples here and parses no header

        for part in self._parts:
            frame, at = part.frame_bytes, part.start
            while at + frame <= part.end:
                self._file.seek(at)
                data = self._file.read(min(part.end - at, BLOCK_VALUES // part.channels * frame))
                if len(data) < frame:
                    break
                at += len(data) // frame * frame
                raw = soundfile.read(
                    io.BytesIO(data[: len(data) // frame * frame]),
                    dtype="float32",
                    always_2d=True,
                    format="RAW",
                    subtype=part.subtype,
                    endian=part.order.upper(),
                    samplerate=part.rate,
                    channels=part.channels,
                )
                yield part.rate, raw[0]

    def close(self) -> None:
        """Does nothing: whoever opened the file closes it."""


def open_wav(file: BinaryIO, rates: range, max_channels: int) -> PlainWav | None:
    """The file if all of it is plain WAV within these bounds; None leaves it to FFmpeg."""
    size, at = file.seek(0, io.SEEK_END), 0
    parts: list[_Part] = []
    chunks = _Chunks(file)
    try:
        while (order := ORDERS.get(chunks.read_at(at, 4))) and chunks.read_at(at + 8, 4) == b"WAVE":
            part = _part(chunks, at + 12, size, order)
            if part is None or part.rate not in rates or not 1 <= part.channels <= max_channels:
                return None
            if part.subtype.startswith("PCM"):
                start = behind_zeros(chunks.read_at, part.start)
                if _SYNC.match(chunks.read_at(start, 4)) or is_frames(chunks.read_at, start):
                    return None
            parts.append(part)
            behind = _behind_chunks(chunks, parts, size, order)
            if len(parts) > MAX_PARTS:
                return None
            at, is_raw = _behind_sound(chunks, parts[-1], behind, size)
            if is_raw:
                parts[-1] = parts[-1]._replace(end=at)
            is_other = chunks.read_at(at, 4) not in ORDERS and is_head(chunks.read_at, behind_tags(chunks.read_at, at))
            if at < size and is_other and (parts[-1].is_open or not is_raw):
                return None
    except _TooManyChunks:
        return None
    return PlainWav(file, parts, size - at) if parts else None


def _behind_sound(chunks: "_Chunks", part: _Part, behind: int, size: int) -> tuple[int, bool]:
    """After a part's chunks, which end at `behind`: (where to continue, whether all before it is the part's sound)."""
    if part.is_open:
        return next_file(chunks.read_at, part.start) or size, True
    at = min(size, behind_tags(chunks.read_at, behind))
    if at == size or is_head(chunks.read_at, at):
        return at, False
    found = next_file(chunks.read_at, at)
    is_sound = at == behind and (found is None or behind_zeros(chunks.read_at, at) < found)
    if (
        is_sound
        and not chunks.read_at(at, 8).startswith(NO_SOUND)
        and (found or size) - at > part.rate * part.frame_bytes
    ):
        return found or size, True
    return at if found is None else found, False


class _TooManyChunks(Exception):
    """The file has more than `MAX_CHUNKS`."""


class _Chunks:
    """Reads and counts a file's chunk headers."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._n_left = file, MAX_CHUNKS

    def read_at(self, at: int, count: int) -> bytes:
        self._file.seek(at)
        return self._file.read(count)

    def head(self, at: int) -> bytes:
        """Name and length. Raises _TooManyChunks."""
        if not self._n_left:
            raise _TooManyChunks
        self._n_left -= 1
        return self.read_at(at, 8)


def _part(chunks: _Chunks, at: int, size: int, order: Order) -> _Part | None:
    fields: tuple[int, int, str, int] | None = None
    while len(head := chunks.head(at)) == 8:
        name, length = head[:4], int.from_bytes(head[4:], order)
        at += 8
        if name == b"data":
            is_open = length in UNKNOWN_SIZES or at + length > size
            end = size if is_open else at + length
            return None if fields is None else _Part(*fields, order, at, end, is_open)
        if name == b"fmt ":
            fields = _fields(chunks.read_at(at, min(length, 40)), order)
        at += length + length % 2
    return None


def _fields(fmt: bytes, order: Order) -> tuple[int, int, str, int] | None:
    """(Hz, channels, subtype, bits) of a format chunk; None if it isn't plain."""
    if len(fmt) < 16:
        return None
    numbers = [int.from_bytes(fmt[at : at + n], order) for at, n in ((0, 2), (2, 2), (4, 4), (12, 2), (14, 2))]
    tag, channels, rate, frame, bits = numbers
    if tag == _EXTENSIBLE and len(fmt) >= 28:
        tag = int.from_bytes(fmt[24:28], order)  # the first number of a GUID
    subtype = _SUBTYPES.get((tag, bits))
    return None if subtype is None or frame != channels * bits // 8 else (rate, channels, subtype, bits)


def _behind_chunks(chunks: _Chunks, parts: list[_Part], size: int, order: Order) -> int:
    """The end of the chunks that follow the samples. More samples among them become further parts."""
    at = parts[-1].end
    at += 0 if is_head(chunks.read_at, at) else at % 2  # some programs do not pad
    while len(head := chunks.head(at)) == 8:
        after = at + 8 + int.from_bytes(head[4:], order)
        if is_head(chunks.read_at, at) or not head[:4].isascii() or not head[:4].decode().isprintable() or after > size:
            break
        if head[:4] == b"data" and after > at + 8:
            parts.append(parts[-1]._replace(start=at + 8, end=after))
        at = after + after % 2
    return at
