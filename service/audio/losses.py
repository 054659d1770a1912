"""Counts the sound that FFmpeg found in a file and lost: packets that don't decode, junk between them, gaps."""

import re
from typing import TYPE_CHECKING, Any

from service.audio.source import Refused, Source
from service.audio.tags import behind_tags

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.packet import Packet

GAP_S = 0.05  # between frames; less is rounding
_PIECE, _IDLE_PIECE = 1 << 20, 1 << 10
_NO_TEXT = re.compile(rb"[\0-\x08\x0b\x0e-\x1f\x7f\xff]")


class Found:
    """The sound of one file, or of several joined ones, and its losses."""

    def __init__(self) -> None:
        self.kind = ""
        self.largest = 0  # size of a packet, if the file declares it: what follows in a packet is junk
        self.met_bytes = self.lost_bytes = 0
        self.idle_bytes = 0  # lost bytes that can't hold frames, so no damage
        self.met_s = self.lost_s = 0.0

    def begin(self, source: Source, kind: str, is_bare: bool, tick_s: float) -> None:
        """Start a recording: a file or a part of one. `is_bare`: see ffmpeg.BARE. `tick_s`: the unit of its times."""
        self._tick_s = tick_s
        self.kind, self._source, self._is_bare, self.largest = self.kind or kind, source, is_bare, 0
        self._start: int | None = None  # position of the first packet
        self._behind = 0  # end of the last packet; positions after damage may be wrong
        self._passed_bytes = 0  # tags and idle bytes between packets
        self._due: float | None = None  # when the next frame begins, in the file's time

    def lose(self, n_bytes: int) -> None:
        """Count bytes of sound that don't decode."""
        self.met_bytes += n_bytes
        self.lost_bytes += n_bytes

    def packet(self, packet: "Packet[Any]") -> None:
        """Count the next packet; an empty one marks the file's end."""
        size, position = packet.size, packet.pos if packet.size else self._source.size
        self.met_bytes += size
        if not self._is_bare or position is None:
            return
        if self._start is None:
            self._start = position
        elif position > self._behind:
            start = min(position, behind_tags(self._source.read_at, self._behind))
            idle = sum(
                _idle_bytes(self._source.read_at(at, min(_PIECE, position - at)))
                for at in range(start, position, _PIECE)
            )
            self.idle_bytes += idle
            self._passed_bytes += start - self._behind + idle
        self._behind = max(self._behind, position + size)
        if not size:
            self.lose(max(0, position - self._start - self._passed_bytes - self.met_bytes))

    def undecoded(self, data: bytes) -> None:
        """Count a packet, or the rest of one, that doesn't decode."""
        idle = _idle_bytes(data)
        self.idle_bytes += idle
        self.lost_bytes += len(data) - idle

    def junk(self, packet: "Packet[Any]", n_frames: int) -> None:
        """Count what follows the frames in a packet, if their size is known; another FLAC file's header isn't junk."""
        size = packet.size
        if self.largest and size > self.largest * max(1, n_frames):
            data = bytes(packet)
            self.undecoded(data[self.largest * max(1, n_frames) + _flac_header_bytes(data) :])

    def frame(self, frame: "AudioFrame") -> None:
        """Count the next decoded frame."""
        seconds = frame.samples / frame.sample_rate
        self.met_s += seconds
        at = self._due
        if frame.pts is not None:
            at = frame.pts * self._tick_s
            if self._due is not None and at - self._due > GAP_S:
                self.lost_s += at - self._due
        if at is not None:
            self._due = at + seconds

    def check(self) -> None:
        """Raise Refused if there is no sound or most of it is lost. Gaps in time alone are not a loss."""
        if not self.met_s:
            raise Refused(f"The {self.kind} file holds no sound that can be decoded.")
        if 2 * self.lost_bytes > self.met_bytes or (self._is_bare and self.lost_s > self.met_s):
            raise Refused(f"Most of the {self.kind} file is damaged: it cannot be decoded.")


def _idle_bytes(data: bytes) -> int:
    """How many of these bytes can't hold frames: runs of one byte, and text."""
    pieces = (data[at : at + _IDLE_PIECE] for at in range(0, len(data), _IDLE_PIECE))
    return sum(len(piece) for piece in pieces if len(set(piece)) == 1 or not _NO_TEXT.search(piece))


def _flac_header_bytes(data: bytes) -> int:
    """The size of a FLAC header in the data; 0 if there is none."""
    start = data.find(b"fLaC")
    at, is_last = start + 4, start < 0
    while not is_last and at + 4 <= len(data):
        is_last = data[at] >= 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return max(0, min(at, len(data)) - start) if start >= 0 else 0
