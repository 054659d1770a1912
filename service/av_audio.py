"""M4A, MP4, WebM, AAC and other sound that libsndfile cannot read: FFmpeg through PyAV, the optional extra [av].

FFmpeg sees nothing but the uploaded bytes: the demuxer is given by name from what the content is, only codecs of
sound are opened, and no demuxer may open another file or address. Its work and its memory are bounded, since an
index may claim to be longer, and to point to more data, than the file.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import UnreadableAudio

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer

FORMATS = "M4A/MP4/MOV, WebM/Matroska, AAC, WMA/ASF, AMR, MPEG and AVI"
# format → FFmpeg's demuxer. None of them reads playlists, subtitles or pictures.
DEMUXERS = {
    "MP4/M4A": "mov",
    "WebM/Matroska": "matroska",
    "AAC": "aac",
    "WMA/ASF": "asf",
    "AMR": "amr",
    "MPEG": "mpeg",
    "AVI": "avi",
}
RARE = {"OGG": "ogg", "WAV": "wav", "CAF": "caf"}  # libsndfile reads them, but for some encodings inside
_COMPRESSED = (
    "aac,aac_latm,ac3,eac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,flac,gsm,gsm_ms,mp1float,mp2,mp2float,"
    "mp3,mp3float,opus,speex,vorbis,wmalossless,wmapro,wmav1,wmav2,wmavoice"
)
_PCM = (
    "pcm_alaw,pcm_mulaw,pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,"
    "pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be"
)
MAX_STREAMS = 16
MAX_ALLOCATION = 16 << 20  # bytes at once, in all of FFmpeg: an index of 700 000 packets, 4 hours of AAC at 48 kHz
MAX_EDITS = 1000  # of an MP4; FFmpeg searches the whole index for each
READ_AGAIN = 64  # an index out of order makes FFmpeg read a file this many times at most
READ_ALWAYS = 64 << 20  # bytes
MAX_CHANGES = 1000  # changes of rate or channels inside one file
BLOCK_FRAMES = 1 << 14  # samples of a channel gathered before they are handed on

Floats = NDArray[np.float32]


class _Readable(Protocol):
    size: int
    failure: Exception | None

    def read(self, count: int, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


class _Bounded:
    """A file that ends, for good, when far more has been read from it than there is."""

    def __init__(self, source: _Readable) -> None:
        self.seek, self.tell, self._source = source.seek, source.tell, source
        self._left = READ_AGAIN * source.size + READ_ALWAYS

    def read(self, count: int) -> bytes:
        data = self._source.read(min(count, self._left))
        self._left -= len(data)
        return data


class Part:
    """A stretch of sound at one rate, with the same channels throughout. To be read before the next."""

    def __init__(self, samplerate: int, channels: int, frames: "_Frames") -> None:
        self.samplerate, self.channels, self._frames = samplerate, channels, frames

    def readings(self) -> Iterator[Floats]:
        """(n, channels) f32 blocks. Ends where the rate or the channels change, or decoding ends."""
        gathered: list[Floats] = []
        n = 0
        while (frame := self._frames.next_like(self.samplerate, self.channels)) is not None:
            gathered.append(_values(frame))
            n += frame.samples
            if n >= BLOCK_FRAMES:
                yield np.concatenate(gathered)
                gathered, n = [], 0
        if gathered:
            yield np.concatenate(gathered)

    def close(self) -> None:
        """Nothing is held: parts() owns the container."""


def is_installed() -> bool:
    return importlib.util.find_spec("av") is not None


def parts(source: _Readable, kind: str) -> Iterator[Part]:
    """The first sound track's parts, nearly always one. `kind` is a key of DEMUXERS or RARE.

    What is damaged inside is passed over; a file that ends early gives what can be decoded. Raises UnreadableAudio
    when there is no sound track, or none that can be decoded.
    """
    av = _av()
    codecs = _COMPRESSED if kind in RARE else f"{_COMPRESSED},{_PCM}"  # PCM that libsndfile refused is broken
    container = _open(av, source, kind, codecs)
    try:
        frames = _Frames(av, container, source, kind, codecs.split(","))
        for _ in range(MAX_CHANGES):
            first = frames.peek()
            if first is None:
                return
            yield Part(first.sample_rate, first.layout.nb_channels, frames)
    finally:
        container.close()


@functools.cache
def _av() -> ModuleType:
    """PyAV, set up on first use: it says nothing, and FFmpeg's allocations are bounded."""
    import av
    import av.logging

    av.logging.set_level(None)
    # PyAV has no call for it; a handle of one of its modules also finds the symbols of the libraries it is linked with.
    max_alloc = getattr(ctypes.CDLL(av._core.__file__), "av_max_alloc", None)
    if max_alloc is not None:
        max_alloc(ctypes.c_size_t(MAX_ALLOCATION))
    return av


def _refuse(url: str, flags: int, options: dict[str, str]) -> BinaryIO:
    """For every other file or address that a demuxer would open."""
    raise PermissionError("only the uploaded file is read")


def _open(av: ModuleType, source: _Readable, kind: str, codecs: str) -> "InputContainer":
    demuxer = (DEMUXERS | RARE)[kind]
    options = {
        "format_whitelist": av.format.ContainerFormat(demuxer, "r").name,
        "codec_whitelist": codecs,  # finding out what streams there are decodes their first packets
        "protocol_whitelist": "none",
        "max_streams": str(MAX_STREAMS),
    }
    if demuxer == "mov":
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}
        if _edits(source) > MAX_EDITS:
            options["advanced_editlist"] = "0"  # all the sound then, edited out or not
    try:
        container: InputContainer = av.open(
            _Bounded(source),
            "r",
            format=demuxer,
            container_options=options,
            metadata_errors="replace",
            io_open=_refuse,
        )
    except _faults(av) as error:
        _unreadable(source, kind, error)
    return container


def _edits(source: _Readable) -> int:
    """How many edits an MP4's edit lists claim to have, at least; any number when its header is compressed."""
    count, tail = 0, b""
    source.seek(0)
    while data := source.read(1 << 20):
        data = tail + data
        at = data.find(b"elst")
        while 0 <= at <= len(data) - 12:
            count += int.from_bytes(data[at + 8 : at + 12], "big")
            at = data.find(b"elst", at + 4)
        count += (MAX_EDITS + 1) * (b"cmov" in data)
        tail = data[-11:]
    source.seek(0)
    return count


def _faults(av: ModuleType) -> tuple[type[Exception], ...]:
    """What PyAV raises about a file: FFmpeg's errors, and Python's own over numbers or text it cannot hold."""
    return (av.error.FFmpegError, ValueError, ArithmeticError, LookupError, PermissionError)


def _unreadable(source: _Readable, kind: str, error: Exception) -> NoReturn:
    if source.failure is not None:
        raise source.failure
    raise UnreadableAudio(
        f"The {kind} file cannot be read: it is damaged, cut off in its header, or its encoding is not supported."
    ) from error


class _Frames:
    """The decoded frames of the first sound track, one of them seen before it is taken."""

    def __init__(
        self, av: ModuleType, container: "InputContainer", source: _Readable, kind: str, codecs: list[str]
    ) -> None:
        tracks = container.streams.audio
        if not tracks:
            raise UnreadableAudio(f"The {kind} file has no audio track.")
        self._track = next((track for track in tracks if _decoder(track) in codecs), None)
        if self._track is None:
            name = _decoder(tracks[0])
            raise UnreadableAudio(
                f"The {kind} file's audio is {name}, which is not read."
                if name
                else f"The {kind} file's audio is encrypted or of an unknown encoding."
            )
        for stream in container.streams:
            if stream is not self._track:
                stream.discard = av.stream.Discard.all
        self._track.codec_context.thread_count = 1
        self._source, self._faults = source, _faults(av)
        self._kind: type[AudioFrame] = av.AudioFrame
        self._decoded = self._decode(container)
        self._next: AudioFrame | None = None
        if self.peek() is None:
            if source.failure is not None:
                raise source.failure
            raise UnreadableAudio(f"The {kind} file holds no sound that can be decoded.")

    def peek(self) -> "AudioFrame | None":
        if self._next is None:
            self._next = next(self._decoded, None)
        return self._next

    def next_like(self, rate: int, channels: int) -> "AudioFrame | None":
        """Take the next frame; None when there is none or it is of another kind."""
        frame = self.peek()
        if frame is None or (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
            return None
        self._next = None
        return frame

    def _decode(self, container: "InputContainer") -> "Iterator[AudioFrame]":
        packets = container.demux(self._track)
        while self._source.failure is None:
            try:
                packet = next(packets, None)
            except self._faults:
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except self._faults:
                continue
            for frame in frames:
                if isinstance(frame, self._kind) and frame.samples and frame.format.name in _SCALES:
                    yield frame


def _decoder(track: Any) -> str | None:
    """The decoder's name; None where FFmpeg has none."""
    return None if track.codec_context is None else track.codec_context.codec.name


# sample format, less the "p" of planar ones → (dtype, silence, full scale)
_PACKED: dict[str, tuple[str, int, int]] = {
    "u8": ("u1", 128, 1 << 7),
    "s16": ("i2", 0, 1 << 15),
    "s32": ("i4", 0, 1 << 31),
    "flt": ("f4", 0, 1),
    "dbl": ("f8", 0, 1),
}
_SCALES = _PACKED | {name + "p": scale for name, scale in _PACKED.items()}


def _values(frame: "AudioFrame") -> Floats:
    """(n, channels) f32 of a frame. Not PyAV's own conversion: it takes a ninth plane for one of eight channels."""
    dtype, silence, full_scale = _SCALES[frame.format.name]
    n, channels = frame.samples, frame.layout.nb_channels
    planes: tuple[Any, ...] = frame.planes  # buffers, which their type does not tell
    if frame.format.is_planar:
        raw = np.stack([np.frombuffer(planes[c], dtype, n) for c in range(channels)], axis=1)
    else:
        raw = np.frombuffer(planes[0], dtype, n * channels).reshape(n, channels)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and silence later
        values = raw.astype(np.float32)
    if full_scale == 1:
        return values
    return (values - np.float32(silence)) / np.float32(full_scale)
