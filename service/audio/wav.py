"""Plain WAV files, which most uploads are: PCM of 8 to 32 bits, float, A-law, µ-law. Anything else is left to FFmpeg.

A header's lengths are not trusted: sound of size 0, as programs write that cannot go back, or of more bytes than there
are goes to the file's end, and so does sound that is followed by a second or more of what isn't a chunk. WAV files one
after the other are read as one. Source: RFC 2361, Microsoft's description of RIFF.
"""

import io
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_VALUES = 1 << 16  # samples × channels read at once
UNKNOWN_SIZES = (0, 0xFFFF_FFFF)
MAX_CHUNKS = 1000  # in a row without sound
MAX_PARTS = 10_000
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
    """One recording: its encoding, and where its samples are in the file."""

    rate: int
    channels: int
    subtype: str
    bits: int
    order: Order
    start: int
    end: int

    @property
    def frame_bytes(self) -> int:
        """A sample of each channel."""
        return self.channels * self.bits // 8


class PlainWav:
    """A file of plain WAV recordings, nearly always one."""

    format = "WAV"
    lost = ""

    def __init__(self, file: BinaryIO, parts: list[_Part]) -> None:
        self._file, self._parts = file, parts
        self.is_float = any(part.subtype in _FLOATS for part in parts)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """(Hz, (n, channels) f32), … in order."""
        import soundfile  # libsndfile converts samples here, and parses no header

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
        """The file is its opener's."""


def open_wav(file: BinaryIO, rates: range, max_channels: int) -> PlainWav | None:
    """The file, where it is plain WAV within these bounds all through; None leaves it to FFmpeg."""
    size, at = file.seek(0, io.SEEK_END), 0
    parts: list[_Part] = []
    while len(parts) < MAX_PARTS and (order := ORDERS.get(_read(file, at, 4))) and _read(file, at + 8, 4) == b"WAVE":
        part = _part(file, at + 12, size, order)
        if part is None or part.rate not in rates or not 1 <= part.channels <= max_channels:
            return None
        at, is_sound = _behind_chunks(file, part.end, size, order)
        if is_sound and size - at > part.rate * part.frame_bytes:
            part, at = part._replace(end=size), size
        parts.append(part)
    return PlainWav(file, parts) if parts else None


def _part(file: BinaryIO, at: int, size: int, order: Order) -> _Part | None:
    fields: tuple[int, int, str, int] | None = None
    for _ in range(MAX_CHUNKS):
        head = _read(file, at, 8)
        name, length = head[:4], int.from_bytes(head[4:], order)
        at += 8
        if len(head) < 8:
            return None
        if name == b"data":
            end = size if length in UNKNOWN_SIZES else min(size, at + length)
            return None if fields is None else _Part(*fields, order, at, end)
        if name == b"fmt ":
            fields = _fields(_read(file, at, min(length, 40)), order)
        at += length + length % 2
    return None


def _fields(fmt: bytes, order: Order) -> tuple[int, int, str, int] | None:
    """(Hz, channels, subtype, bits) of a format chunk; None for what is not plain."""
    if len(fmt) < 16:
        return None
    numbers = [int.from_bytes(fmt[at : at + n], order) for at, n in ((0, 2), (2, 2), (4, 4), (12, 2), (14, 2))]
    tag, channels, rate, frame, bits = numbers
    if tag == _EXTENSIBLE and len(fmt) >= 28:
        tag = int.from_bytes(fmt[24:28], order)  # a GUID's first number
    subtype = _SUBTYPES.get((tag, bits))
    return None if subtype is None or frame != channels * bits // 8 else (rate, channels, subtype, bits)


def _behind_chunks(file: BinaryIO, at: int, size: int, order: Order) -> tuple[int, bool]:
    """Where the chunks end that follow the samples, and whether there is something else then."""
    at += at % 2
    for _ in range(MAX_CHUNKS):
        head = _read(file, at, 8)
        after = at + 8 + int.from_bytes(head[4:], order)
        if len(head) < 8 or head[:4] in ORDERS:
            return at, False
        if not head[:4].isascii() or not head[:4].decode().isprintable() or after > size:
            return at, True
        at = after + after % 2
    return size, False


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
