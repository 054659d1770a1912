"""Finds files joined end to end in one upload, and junk in front: where a file begins and where the next may start.

Source for OGG, whose recordings FFmpeg reads on only if they are alike: RFC 3533, page headers.
"""

import heapq
import re
from collections.abc import Iterator
from typing import NamedTuple

from service.audio.tags import ReadAt, behind_tags

_FIRST_PIECE, _PIECE = 1 << 12, 1 << 20  # the next file is nearly always close
_HEAD_BYTES = 16
_N_HEAD = 6  # bytes of a frame's header that are checked
_N_FRAMES = 3  # in a row, for bytes to count as frames
_RUN = 10  # in a row that cannot be samples by chance
_MAX_BOXES = 100
_MAX_ZEROS = 1 << 20  # of padding between files
_MAX_MARKS = 1000  # of one kind per piece
UNKNOWN_SIZES = (0, 0xFFFF_FFFF)  # of a WAV's sound, written by programs that cannot seek back
_TAIL_BYTES = 64  # after the last sound: padding, or an FLV's last tag
# Signatures to search for; `ftyp` comes after 4 bytes of the file's head.
_MARKS = (
    *(b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff", b"riff.\x91\xcf\x11", b"fLaC", b"OggS\0\x02", b"wvpk", b"TTA1"),
    *(b"FLV\x01", b"ftyp", b".snd\0\0", b"#!AMR", b"MAC ", b"NIST_1A\n", b"ID3"),
    *(b"0&\xb2u\x8ef\xcf\x11", b"\x1aE\xdf\xa3"),  # ASF, Matroska
)
_BEFORE_FTYP = 4
_CERTAIN = re.compile(
    rb"RIF[FX].{4}(WAVE|AVI )|RF64.{4}WAVE|FORM.{4}AIF[FC]|caff\0[\x01\x02]|riff\.\x91\xcf\x11|fLaC[\0\x80]\0\0\x22"
    rb"|OggS\0\x02|wvpk.{4}[\x02-\x10]\x04|TTA1[\x01\x02]\0|FLV\x01|\0\0..ftyp|\.snd\0\0|#!AMR|MAC .[\x0b-\x10]"
    rb"|0&\xb2u\x8ef\xcf\x11|\x1aE\xdf\xa3|NIST_1A\n",
    re.DOTALL,
)
# A frame of MPEG, layer II or III, or of ADTS with AAC of low complexity.
_FRAME = re.compile(rb"\xff(?:[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]|[\xf0\xf1\xf8\xf9][\x40-\x73])", re.DOTALL)
# MPEG's streams, whose parts all begin so: packs, and packets of 188 bytes.
_STREAM = re.compile(rb"\0\0\x01\xba[\x21-\x2f\x44-\x7f]|(?:G.{187}){4}G", re.DOTALL)
_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # that QuickTime files begin with, without ftyp
# The first bytes of files without sound: JPEG, PNG, GIF, PDF, zip, gzip, 7z, XML.
NO_SOUND = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"%PDF", b"PK\3\4", b"\x1f\x8b\x08", b"7z\xbc\xaf", b"<?xml")
_TAG = re.compile(rb"ID3[\x02-\x04][\x00-\x10].[\0-\x7f]{4}", re.DOTALL)
# kbit/s by four bits of the header: MPEG 1 layer III, MPEG 1 layer II, both of MPEG 2
_BIT_RATES = {
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


_OGG_FIRST_PAGE = b"OggS\x00\x02"  # the start of a stream's first page
_OGG_HEADER = 27  # bytes before a page's segment table


class Head(NamedTuple):
    """A possible start of a file. An uncertain one is a tag or bare frames, and may be neither."""

    at: int
    is_certain: bool


def heads(read_at: ReadAt, end: int, at: int, behind: int) -> Iterator[Head]:
    """Possible starts, in order, of further files after the one at `at`, whose last sound ends at `behind`."""
    frames = (Head(place, False) for place in _ends(read_at, end, at, behind) if is_frames(read_at, place))
    yield from heapq.merge(frames, _marked(read_at, max(behind, at + 1)))


def is_head(read_at: ReadAt, at: int) -> bool:
    """Whether an audio file starts here."""
    return bool(_CERTAIN.match(read_at(at, _HEAD_BYTES))) or is_frames(read_at, at)


def beginning(read_at: ReadAt, at: int) -> int:
    """Where the first file or frame begins: at `at`, behind zeros, or behind up to a MiB of junk.

    Junk that is a file of another kind, a picture or an archive, is that file.
    """
    start = read_at(at, 8)
    if is_head(read_at, at) or start.startswith(NO_SOUND) or start[4:] in _BOXES:
        return at
    place = at
    while (further := behind_zeros(read_at, place)) > place:
        place = further
    if is_head(read_at, place):
        return place
    place = max(at, place - 3)  # an MP4's first box begins with zeros
    end = place + _PIECE
    head = min(end, next((head.at for head in _marked(read_at, place) if _is_sure(read_at, head)), end))
    if stream := _STREAM.search(read_at(place, head - place)):
        head = place + stream.start()
    if (frames := _frames(read_at, place, head)) is not None:
        return frames
    return at if head == end else head


def next_file(read_at: ReadAt, at: int) -> int | None:
    """Start of the next audio file, after zeros or any other bytes; None if no certain one is found."""
    place = behind_zeros(read_at, at)
    if is_head(read_at, place):
        return place
    head = next((head.at for head in _marked(read_at, at) if _is_sure(read_at, head)), None)
    frames = _frames(read_at, at, head)
    return head if frames is None else frames


def _frames(read_at: ReadAt, at: int, end: int | None) -> int | None:
    """The start of certain frames of MPEG or AAC before `end` (None: the file's end); None if there are none."""
    while (end is None or at < end) and len(piece := read_at(at, _PIECE + _N_HEAD)) > _N_HEAD:
        for match in _FRAME.finditer(piece, 0, _PIECE + 2 if end is None else min(_PIECE, end - at) + 2):
            if _is_run(read_at, at + match.start()):
                return at + match.start()
        at += _PIECE
    return None


def _is_run(read_at: ReadAt, at: int) -> bool:
    """Whether frames alike follow one another here. They must differ: the samples of a tone may repeat a header."""
    first, frames, n = read_at(at, _N_HEAD), set(), 0
    while n < _RUN:
        head = read_at(at, _N_HEAD)
        length = _frame_bytes(head)
        if not length or head[1] != first[1] or (head[2] ^ first[2]) & 0x0C:
            break
        frame = read_at(at, length)
        if len(frame) == length:
            frames.add(frame)
        at, n = at + length, n + 1
    return len(frames) > 1 and (n == _RUN or (n >= _N_FRAMES and not read_at(at, 1)))


def _is_sure(read_at: ReadAt, head: Head) -> bool:
    """Whether the head is more than four bytes that could occur in samples by chance."""
    if not head.is_certain:
        return is_frames(read_at, behind_tags(read_at, head.at))
    start = read_at(head.at, 64)
    if start.startswith(b"\x1aE\xdf\xa3"):
        return b"matroska" in start or b"webm" in start
    return not start.startswith(b"FLV") or start[5:9] == b"\0\0\0\x09"


def behind_zeros(read_at: ReadAt, at: int) -> int:
    """End of a run of zeros that may start at `at`."""
    zeros = read_at(at, _MAX_ZEROS)
    return at + len(zeros) - len(zeros.lstrip(b"\0"))


def is_frames(read_at: ReadAt, at: int) -> bool:
    """Whether consecutive frames of MPEG, ADTS, AC-3 or DTS start here."""
    head = read_at(at, 6)
    if head[:4] == b"\x7f\xfe\x80\x01" or (head[:2] == b"\x0bw" and len(head) == 6 and head[5] >> 3 <= 16):
        return True
    for _ in range(_N_FRAMES):
        if not (length := _frame_bytes(read_at(at, 6))):
            return False
        at += length
    return True


def _frame_bytes(head: bytes) -> int:
    """Length of an ADTS or MPEG layer II or III frame with this header; 0 for anything else."""
    if len(head) < 6 or head[0] != 0xFF or head[1] < 0xE0:
        return 0
    if head[1] & 0xF6 == 0xF0:
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        return length if length > 7 and (head[2] >> 2 & 15) < 13 else 0
    version, layer, bits, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    table = _BIT_RATES.get((1 if version == 3 else 2, layer))
    if table is None or version == 1 or bits in (0, 15) or rate == 3:
        return 0
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    factor = 72_000 if version != 3 and layer == 3 else 144_000
    return factor * table[bits - 1] // hertz + (head[2] >> 1 & 1)


def _ends(read_at: ReadAt, end: int, at: int, behind: int) -> list[int]:
    """Possible ends of the file at `at`: of its sound, by its own length, or after its last box."""
    places = {*range(behind, min(end, behind + _TAIL_BYTES)), behind_zeros(read_at, behind)}
    head = read_at(at, 8)
    if head[:4] in (b"RIFF", b"RIFX", b"FORM"):
        length = int.from_bytes(head[4:], "little" if head[:4] == b"RIFF" else "big")
        places.add(at + 8 + length + length % 2)
    elif head[4:] == b"ftyp":
        places.add(_behind_boxes(read_at, at))
    elif head[:4] == b"caff":
        places.add(_behind_caf_chunks(read_at, at + 8))
    places |= {behind_tags(read_at, place) for place in (behind, *places - set(range(behind, behind + _TAIL_BYTES)))}
    return sorted(place for place in places if behind <= place < end)


def _behind_boxes(read_at: ReadAt, at: int) -> int:
    for _ in range(_MAX_BOXES):
        head = read_at(at, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or not head[4:8].isalnum():
            break
        at += length
    return at


def _behind_caf_chunks(read_at: ReadAt, at: int) -> int:
    for _ in range(_MAX_BOXES):
        head = read_at(at, 12)
        if len(head) < 12 or not head[:4].isalnum():
            break
        at += 12 + int.from_bytes(head[4:], "big")
    return at


def own_end(read_at: ReadAt, end: int, at: int) -> int:
    """End of a WAV, Matroska or FLV file at `at` by its own lengths: FFmpeg would read the next file as part of it.

    A WAV without a length ends where the next file begins, unless its own sound consists of such frames.
    """
    head = read_at(at, 12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        if (sound := _open_sound(read_at, at + 12, end)) is not None:
            return end if is_frames(read_at, behind_zeros(read_at, sound)) else next_file(read_at, sound) or end
        stop = at + 8 + int.from_bytes(head[4:8], "little")
        return next((place for place in (stop, stop + 1) if _CERTAIN.match(read_at(place, _HEAD_BYTES))), end)
    if read_at(at, 4) == b"FLV\x01":
        stop = _behind_flv_tags(read_at, at + 13)
        return stop if is_head(read_at, stop) else end
    if read_at(at, 4) != b"\x1aE\xdf\xa3":
        return end
    for name_bytes in (b"\x1aE\xdf\xa3", b"\x18S\x80g"):
        head = read_at(at, 12)
        width = 9 - head[4].bit_length() if len(head) == 12 and head[:4] == name_bytes else 9
        length = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if width > 8 or length == (1 << 7 * width) - 1:
            return end
        at += 4 + width + length
    return min(at, end)


def _open_sound(read_at: ReadAt, at: int, end: int) -> int | None:
    """The start of a WAV's samples, from its chunks at `at` on; None if the header gives their number."""
    for _ in range(_MAX_BOXES):
        head = read_at(at, 8)
        length = int.from_bytes(head[4:], "little")
        at += 8
        if head[:4] == b"data":
            return at if length in UNKNOWN_SIZES or at + length > end else None
        if len(head) < 8 or not head[:4].isascii():
            break
        at += length + length % 2
    return None


def _behind_flv_tags(read_at: ReadAt, at: int) -> int:
    while len(head := read_at(at, 11)) == 11:
        length = 11 + int.from_bytes(head[1:4], "big")
        if read_at(at + length, 4) != length.to_bytes(4, "big"):
            break
        at += length + 4
    return at


def _marked(read_at: ReadAt, at: int) -> Iterator[Head]:
    size = _FIRST_PIECE
    while len(piece := read_at(at, size + _HEAD_BYTES)) >= _HEAD_BYTES:
        places = set()
        for mark in _MARKS:
            offset = _BEFORE_FTYP if mark == b"ftyp" else 0
            found = piece.find(mark)
            for _ in range(_MAX_MARKS):
                if found < 0:
                    break
                if offset <= found < size + _BEFORE_FTYP:
                    places.add(found - offset)
                found = piece.find(mark, found + 1)
        for place in sorted(places):
            head = piece[place : place + _HEAD_BYTES]
            if place < size and (_CERTAIN.match(head) or _TAG.match(head)):
                yield Head(at + place, head[:3] != b"ID3")
        at += size
        size = min(_PIECE, 2 * size)


def ogg_links(read_at: ReadAt, size: int) -> list[tuple[int, int]]:
    """[(start, end), …] in bytes of the recordings in an OGG file; streams that start together count as one."""
    starts, behind = [0], 0
    for at in _ogg_first_pages(read_at):
        if at != behind and at > 0:
            starts.append(at)
        page = read_at(at, _OGG_HEADER + 255)
        n_segments = page[26] if len(page) >= _OGG_HEADER else 0
        behind = at + _OGG_HEADER + n_segments + sum(page[_OGG_HEADER : _OGG_HEADER + n_segments])
    return list(zip(starts, [*starts[1:], size], strict=True))


def _ogg_first_pages(read_at: ReadAt) -> Iterator[int]:
    offset = 0
    while len(piece := read_at(offset, _PIECE)) >= len(_OGG_FIRST_PAGE):
        found = piece.find(_OGG_FIRST_PAGE)
        while found >= 0:
            yield offset + found
            found = piece.find(_OGG_FIRST_PAGE, found + 1)
        offset += len(piece) - len(_OGG_FIRST_PAGE) + 1
