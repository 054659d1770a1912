"""MP3 files whose length nobody says, or says wrongly, made whole: libsndfile stops at the frame count it was told.

A variable-rate MP3 without a Xing header is taken to be as long as its first frame's bit rate suggests, and two MP3s
one after the other as long as the first. So the decoder is shown a Xing header that promises too many frames,
and reads to the end of the file. Source: ISO 11172-3 frame headers; the Xing header as LAME writes it.
"""

from collections.abc import Callable
from dataclasses import dataclass

SEARCH_BYTES = 1 << 16  # how far behind its tags an MP3's first frame may begin
TAG_BYTES = 4096  # tags may follow the last frame
ENDLESS = 0x7FFF_FFFF  # frames: 2 years
_HAS_FRAMES, _HAS_BYTES = 1, 2  # Xing's flags
_RATES = (44_100, 48_000, 32_000)  # Hz of MPEG-1; halves in MPEG-2, quarters in MPEG-2.5
_KBIT_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBIT_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_HIGHEST = 14  # index of the bit rate whose frames hold a Xing header at any sample rate

Read = Callable[[int, int], bytes]  # (offset, count) → bytes, fewer at the end


@dataclass(frozen=True)
class _Frame:
    """A layer III frame's header, read."""

    header: bytes  # 4
    is_mpeg_1: bool
    size: int  # bytes, header included
    xing_at: int  # offset in the frame

    @classmethod
    def parse(cls, header: bytes) -> "_Frame | None":
        """None for what is no layer III header, or one of free format."""
        if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
            return None
        version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
        if version == 1 or bitrate in (0, 15) or rate == 3:
            return None
        is_mpeg_1, is_mono = version == 3, header[3] >> 6 == 3
        kbit = (_KBIT_1 if is_mpeg_1 else _KBIT_2)[bitrate]
        hertz = _RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
        size = (144 if is_mpeg_1 else 72) * kbit * 1000 // hertz + (header[2] >> 1 & 1)
        side_information = (17 if is_mono else 32) if is_mpeg_1 else (9 if is_mono else 17)
        return cls(header, is_mpeg_1, size, 4 + side_information)


def promise_frames(read: Read, start: int, size: int) -> tuple[bytes, int]:
    """(bytes to show first, offset in the file to go on from) of the MP3 between `start` and `size`.

    A file whose Xing header covers all of it, and one with no layer III frame near its start, are left: (b"", 0).
    """
    head = read(start, SEARCH_BYTES)
    for offset in range(len(head) - 4):
        frame = _Frame.parse(head[offset : offset + 4])
        following = frame and _Frame.parse(head[offset + frame.size : offset + frame.size + 4])
        if frame and following and following.is_mpeg_1 == frame.is_mpeg_1:
            break
    else:
        return b"", 0
    first = bytearray(head[offset : offset + frame.size])
    at = frame.xing_at
    if first.startswith((b"Xing", b"Info"), at):
        flags = int.from_bytes(first[at + 4 : at + 8], "big")
        told = int.from_bytes(first[at + 12 : at + 16], "big")  # bytes, where both flags are set
        if not flags & _HAS_FRAMES:
            return b"", 0
        if flags & _HAS_BYTES and told >= size - start - offset - TAG_BYTES:
            return b"", 0
        first[at + 8 : at + 12] = ENDLESS.to_bytes(4, "big")
        return bytes(first), start + offset + frame.size
    # No CRC (bit 0 of byte 1), the highest bit rate, no padding: a silent frame with room for the header.
    header = bytes([frame.header[0], frame.header[1] | 1, _HIGHEST << 4 | frame.header[2] & 0x0C, frame.header[3]])
    made = _Frame.parse(header)
    assert made is not None
    xing = b"Xing" + _HAS_FRAMES.to_bytes(4, "big") + ENDLESS.to_bytes(4, "big")
    return (header + bytes(made.xing_at - 4) + xing).ljust(made.size, b"\0"), start + offset
