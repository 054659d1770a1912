"""FFmpeg, through PyAV: any sound file → its decoded frames. Runs in a process of its own, see decoder_process.

FFmpeg sees nothing but the uploaded bytes. It finds out itself what they are, may only take a demuxer of `FORMATS`, and
no demuxer may open another file or address. Only codecs of sound are opened. NumPy is not needed here.
"""

import copy
import functools
import io
import os
import re
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from service.audio.joined import heads, own_end
from service.audio.ogg import links
from service.audio.tags import behind_tags

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.packet import Packet

# FFmpeg's demuxer → what users call it. None of them reads playlists, scripts, subtitles or pictures.
FORMATS = {
    "wav": "WAV",
    "flac": "FLAC",
    "ogg": "OGG",
    "mp3": "MP3",
    "mov": "MP4/M4A",
    "matroska": "WebM/Matroska",
    "aac": "AAC",
    "loas": "AAC",
    "asf": "WMA/ASF",
    "amr": "AMR",
    "aiff": "AIFF",
    "au": "AU",
    "caf": "CAF",
    "w64": "W64",
    "ac3": "AC-3",
    "eac3": "E-AC-3",
    "dts": "DTS",
    "dtshd": "DTS",
    "wv": "WavPack",
    "tta": "TTA",
    "ape": "Monkey's Audio",
    "nistsphere": "SPHERE",
    "mpeg": "MPEG",
    "mpegts": "MPEG-TS",
    "avi": "AVI",
    "flv": "FLV",
}
FORMATS_READ = (
    "WAV, FLAC, OGG (Vorbis, Opus), MP3, M4A/MP4/MOV, WebM/Matroska, AAC, WMA/ASF, AMR, AIFF, AU, CAF, W64, AC-3, DTS, "
    "WavPack, TTA, Monkey's Audio, SPHERE, MPEG, AVI and FLV"
)
BARE = ("mp3", "aac", "loas", "ac3", "eac3", "dts", "flac")  # frames and nothing between them, but for tags
MAX_STREAMS = 64
GAP_S = 0.05  # between frames; less is rounding
MAX_FAULTS = 100  # places in a row where a file cannot be read on
MAX_FILES = 1000  # one after the other
MAX_FALSE_HEADS = 20  # places that look like another file's head and aren't


_PIECE, _IDLE_PIECE = 1 << 20, 1 << 10
_NO_TEXT = re.compile(rb"[\0-\x08\x0b\x0e-\x1f\x7f\xff]")


class Refused(Exception):
    """The file gives no sound: one sentence for the user."""


class _Output(Protocol):
    def frame(self, format: str, rate: int, n: int, planes: list[bytes], channels: int) -> None: ...

    def flush(self) -> None: ...

    def send(self, kind: bytes, *parts: bytes) -> None: ...


class Source:
    """A descriptor from an offset on, as PyAV reads it. Its position is its own: others may share the descriptor."""

    def __init__(self, fd: int, start: int) -> None:
        self._fd, self.start, self._position = fd, start, 0
        self._end = max(start, os.fstat(fd).st_size)
        self.failure: OSError | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self._end - self.start

    def show(self, start: int, end: int) -> None:
        """From now on be the bytes from `start` to `end` of the descriptor."""
        self.start, self._end, self._position = start, end, 0

    def read(self, count: int) -> bytes:
        data = self.read_at(self._position, count)
        self._position += len(data)
        return data

    def read_at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes. Keeps what the disk says, as FFmpeg reports an error of its own."""
        try:
            return os.pread(self._fd, max(0, min(count, self.size - position)), self.start + position)
        except OSError as error:
            self.failure = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position


@functools.cache
def set_up() -> ModuleType:
    """PyAV, silent, with the modules that it would import later: a process that is locked in cannot."""
    import av
    import av.logging
    import av.subtitles.codeccontext
    import av.subtitles.stream
    import av.subtitles.subtitle

    av.logging.set_level(None)
    return av


@functools.cache
def codecs() -> str:
    """The names of all decoders of sound."""
    av = set_up()
    return ",".join(name for name in sorted(av.codecs_available) if _decodes_sound(av, name))


def _decodes_sound(av: ModuleType, name: str) -> bool:
    try:
        return bool(av.Codec(name, "r").type == "audio")
    except (av.error.FFmpegError, ValueError):
        return False  # an encoder


def decode(source: Source, output: _Output) -> None:
    """Send the format, then the frames of the first sound track, then how much of it did not decode.

    What is damaged inside is passed over; a file that ends early gives what can be decoded. Files joined one after the
    other are all heard. Raises Refused when there is no sound, or most of it does not decode; MemoryError; OSError
    where the file cannot be read.
    """
    found, at, end = _Found(), source.start, source.start + source.size
    behind = _decode_file(source, at, end, output, found, tuple(FORMATS))
    n_files, n_false, unheard, unheard_from = 1, 0, 0, end

    def read_at(position: int, count: int) -> bytes:
        return source.read_at(position - source.start, count)

    following = heads(read_at, end, at, behind)
    while head := next(following, None):
        if n_files == MAX_FILES or n_false == MAX_FALSE_HEADS:
            unheard_from = min(unheard_from, head.at)
            break
        before = copy.copy(found)
        try:
            behind = _decode_file(source, head.at, end, output, found, tuple(FORMATS) if head.is_certain else BARE)
            if found.met_s == before.met_s:
                raise Refused
        except Refused:
            found, n_false = before, n_false + 1
            if head.is_certain:
                unheard_from = min(unheard_from, head.at)
            continue
        n_files += 1
        unheard += max(0, head.at - unheard_from)
        unheard_from = end
        following = heads(read_at, end, head.at, behind)
    found.check()
    output.flush()
    output.send(
        b"E", f"{found.lost_bytes + found.idle_bytes + unheard + end - unheard_from},{found.lost_s:.3f}".encode()
    )


def _decode_file(source: Source, at: int, end: int, output: _Output, found: "_Found", formats: tuple[str, ...]) -> int:
    """Decode the file that begins at `at`; where its last packet ends."""
    source.show(at, end)
    behind = 0
    for start, stop in links(source.read_at, end - at) if source.read_at(0, 4) == b"OggS" else [(0, end - at)]:
        source.show(at + start, at + own_end(source.read_at, stop, start))
        try:
            behind = start + _decode(source, output, found, formats)
        except Refused:
            if start == 0:
                raise
            found.lose(stop - start)
        finally:
            source.show(at, end)
    return at + behind


def _decode(source: Source, output: _Output, found: "_Found", formats: tuple[str, ...]) -> int:
    av = set_up()
    container = _open(av, source, formats)
    demuxer = container.format.name.partition(",")[0]
    kind = FORMATS[demuxer]
    if len(container.streams) > MAX_STREAMS:
        raise Refused(f"The {kind} file has more than {MAX_STREAMS} tracks.")
    tracks = container.streams.audio
    if not tracks:
        raise Refused(f"The {kind} file has no audio track.")
    track = next((track for track in tracks if _decoder(track)), None)
    if track is None:
        raise Refused(f"The {kind} file's audio is encrypted or of an unknown encoding.")
    for stream in container.streams:
        if stream is not track:
            stream.discard = av.stream.Discard.all
    track.codec_context.thread_count = 1
    if not found.kind:
        output.send(b"S", f"{kind},{_decoder(track)}".encode())
    found.begin(source, kind, demuxer in BARE, float(track.time_base or 0))
    if demuxer == "flac":
        found.largest = int.from_bytes((track.codec_context.extradata or b"")[7:10], "big")
    behind = 0
    for packet in _packets(av, container, track, source):
        found.packet(packet)
        behind = max(behind, (packet.pos or 0) + packet.size)
        try:
            frames = packet.decode()
        except _faults(av) as error:
            _no_memory(error)
            found.undecoded(bytes(packet))
            continue
        found.junk(packet, len(frames))
        for frame in frames:
            if isinstance(frame, av.AudioFrame) and frame.samples:
                found.frame(frame)
                _send(frame, output)
    if source.failure is not None:
        raise source.failure
    return behind


def _open(av: ModuleType, source: Source, formats: tuple[str, ...]) -> "InputContainer":
    options = {
        "format_whitelist": ",".join(formats),
        "codec_whitelist": codecs(),  # finding out what streams there are decodes their first packets
        "protocol_whitelist": "none",
        "max_streams": str(MAX_STREAMS + 1),
        "enable_drefs": "0",  # of an MP4
        "use_absolute_path": "0",
    }
    try:
        container: InputContainer = av.open(
            source, "r", container_options=options, metadata_errors="replace", io_open=_refuse
        )
    except _faults(av) as error:
        _no_memory(error)
        if source.failure is not None:
            raise source.failure from None
        raise Refused(
            "The file is not audio of a known format, or it is damaged or cut off in its header. "
            f"Formats read: {FORMATS_READ}."
        ) from error
    return container


def _refuse(url: str, flags: int, options: dict[str, str]) -> None:
    """For every other file or address that a demuxer would open."""
    raise PermissionError("only the uploaded file is read")


def _faults(av: ModuleType) -> tuple[type[Exception], ...]:
    """What PyAV raises about a file: FFmpeg's errors, and Python's own over numbers or text it cannot hold."""
    return (av.error.FFmpegError, ValueError, ArithmeticError, LookupError, PermissionError)


def _no_memory(error: Exception) -> None:
    """Raise MemoryError where that is what FFmpeg ran into: the file is not at fault there, so it is not read on."""
    if isinstance(error, MemoryError):
        raise error


def _decoder(track: Any) -> str | None:
    """The decoder's name; None where FFmpeg has none."""
    return None if track.codec_context is None else track.codec_context.codec.name


def _packets(av: ModuleType, container: "InputContainer", track: Any, source: Source) -> "Iterator[Packet[Any]]":
    """The track's packets. Where the file cannot be read on, FFmpeg tries from where it stands."""
    n_faults = 0
    while n_faults < MAX_FAULTS and source.failure is None:
        try:
            for packet in container.demux(track):
                n_faults = 0
                yield packet
            return
        except _faults(av) as error:
            _no_memory(error)
            n_faults += 1


class _Found:
    """How much sound was met and how much of it lost: packets that don't decode, junk between them, gaps in time."""

    def __init__(self) -> None:
        self.kind = ""
        self.largest = 0  # packet there may be, where the file says it: what is behind is junk
        self.met_bytes = self.lost_bytes = 0
        self.idle_bytes = 0  # lost ones that hold no frames: no damage
        self.met_s = self.lost_s = 0.0

    def begin(self, source: Source, kind: str, is_bare: bool, tick_s: float) -> None:
        """A recording: the file, or a part of it. `is_bare`: one of frames and nothing between them."""
        self._tick_s = tick_s  # of its time
        self.kind, self._source, self._is_bare, self.largest = self.kind or kind, source, is_bare, 0
        self._start: int | None = None  # of the first packet in the file
        self._behind = 0  # the last packet there; positions may be off for packets behind a damage
        self._passed_bytes = 0  # tags and idle bytes between packets
        self._due: float | None = None  # when the next frame begins, in the file's time

    def lose(self, n_bytes: int) -> None:
        """Bytes of sound that do not decode."""
        self.met_bytes += n_bytes
        self.lost_bytes += n_bytes

    def packet(self, packet: "Packet[Any]") -> None:
        """The next one; one of no bytes comes at the file's end."""
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
        """Count a packet, or what is left of it, that does not decode."""
        idle = _idle_bytes(data)
        self.idle_bytes += idle
        self.lost_bytes += len(data) - idle

    def junk(self, packet: "Packet[Any]", n_frames: int) -> None:
        """Count what a packet holds after its frames, where their size is known; another FLAC file's header isn't."""
        size = packet.size
        if self.largest and size > self.largest * max(1, n_frames):
            data = bytes(packet)
            self.undecoded(data[self.largest * max(1, n_frames) + _flac_header_bytes(data) :])

    def frame(self, frame: "AudioFrame") -> None:
        """The next one."""
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
        """Raise Refused if there is no sound, or most of it is lost. Time may have gaps that nothing was in."""
        if not self.met_s:
            raise Refused(f"The {self.kind} file holds no sound that can be decoded.")
        if 2 * self.lost_bytes > self.met_bytes or (self._is_bare and self.lost_s > self.met_s):
            raise Refused(f"Most of the {self.kind} file is damaged: it cannot be decoded.")


def _idle_bytes(data: bytes) -> int:
    """How many of these bytes cannot hold frames: runs of one byte, and text."""
    pieces = (data[at : at + _IDLE_PIECE] for at in range(0, len(data), _IDLE_PIECE))
    return sum(len(piece) for piece in pieces if len(set(piece)) == 1 or not _NO_TEXT.search(piece))


def _flac_header_bytes(data: bytes) -> int:
    """Of the FLAC header that begins somewhere in the data, 0 where none does."""
    start = data.find(b"fLaC")
    at, is_last = start + 4, start < 0
    while not is_last and at + 4 <= len(data):
        is_last = data[at] >= 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return max(0, min(at, len(data)) - start) if start >= 0 else 0


_SAMPLE_BYTES = {"u8": 1, "s16": 2, "s32": 4, "s64": 8, "flt": 4, "dbl": 8}


def _send(frame: "AudioFrame", output: _Output) -> None:
    name, n, channels = frame.format.name, frame.samples, frame.layout.nb_channels
    size = n * _SAMPLE_BYTES[name.removesuffix("p")]
    planes: tuple[Any, ...] = frame.planes  # buffers, which their type does not say
    if frame.format.is_planar:
        raw = [bytes(memoryview(planes[channel])[:size]) for channel in range(channels)]
    else:
        raw = [bytes(memoryview(planes[0])[: size * channels])]
    output.frame(name, frame.sample_rate, n, raw, channels)
