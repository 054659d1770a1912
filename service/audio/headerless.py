"""Raw telephone sound has no header, so its name or media type must tell its format: it gets a header here.

G.722, G.726, A-law and µ-law; where the content is a file of another kind, the content decides. Source: RFC 3551 (its
G.726 is little-endian, that of AAL2 and of FFmpeg's name g726 is big-endian), RFC 2361, Sun's description of AU.
"""

import re
import struct

from service.audio.joined import is_head

HELD_BYTES = 4096  # enough to recognise a file of another kind
_RATE = 8000  # Hz, of all but G.722
_UNKNOWN = 0xFFFF_FFFF
_NAME = re.compile(
    r"(?P<wide>g722)|(?P<aal2>aal2-)?g726(-(?P<kbits>16|24|32|40))?(?P<le>le)?|(?P<law>[au]|mu)law|pcm(?P<pcm>[au])"
)
_AU_G726 = {2: 0x37323632, 3: 25, 4: 23, 5: 26}  # bits of a sample → AU's encoding, of little-endian ones


def header_for(filename: str, content_type: str) -> bytes:
    """The header for a file with this name and media type; empty if neither means raw sound."""
    media_type, _, parameters = content_type.lower().partition(";")
    kind, _, subtype = media_type.strip().partition("/")
    if kind == "audio" and (match := _NAME.fullmatch(subtype.removeprefix("x-"))):
        rate = re.search(r"\brate=(\d{4,6})", parameters)
        return _header(match, rate=int(rate[1]) if rate else _RATE, is_rtp=True)
    match = _NAME.fullmatch(filename.lower().rpartition(".")[2]) if "." in filename else None
    return _header(match, rate=_RATE, is_rtp=False) if match else b""


def _header(match: re.Match[str], *, rate: int, is_rtp: bool) -> bytes:
    if match["wide"]:
        return _wav(0x28F, 16_000, 4)
    if law := match["law"] or match["pcm"]:
        return _wav(6 if law == "a" else 7, rate, 8)
    bits = int(match["kbits"] or 32) // 8
    if match["le"] or (is_rtp and match["kbits"] and not match["aal2"]):
        return struct.pack(">4sIIIII", b".snd", 24, _UNKNOWN, _AU_G726[bits], rate, 1)
    return _wav(0x45, rate, bits)


def _wav(tag: int, rate: int, bits: int) -> bytes:
    block = bits if bits % 8 else 1  # bytes of 8 samples, which must not be split
    fmt = struct.pack("<HHIIHH", tag, 1, rate, rate * bits // 8, block, bits)
    data = struct.pack("<4sI", b"data", _UNKNOWN)
    return struct.pack("<4sI8sI", b"RIFF", _UNKNOWN, b"WAVEfmt ", len(fmt)) + fmt + data


def is_raw(start: bytes) -> bool:
    """Whether a file with this start may be raw sound."""
    return not start.startswith(b"ID3") and not is_head(lambda at, count: start[at : at + count], 0)
