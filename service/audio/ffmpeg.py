"""FFmpeg, through PyAV: any sound file → its decoded frames. Runs in its own process, see decoder_process.

FFmpeg sees only the uploaded bytes and detects their format itself. It may use the demuxers in `FORMATS`, none of which
may open another file or address, and audio codecs only. NumPy is not needed here.
"""

import copy
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from service.audio.frames import is_audible, planes
from service.audio.joined import beginning, heads, ogg_links, own_end
from service.audio.losses import Found
from service.audio.source import Refused, Source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

    from service.audio.decoder_process import Output

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
BARE = ("mp3", "aac", "loas", "ac3", "eac3", "dts", "flac")  # frames with nothing but tags between them
MAX_STREAMS = 64
MAX_FAULTS = 100  # in a row while reading a file
MAX_FILES = 1000  # joined in one upload
MAX_FALSE_HEADS = 20  # places that look like another file's head and aren't


@functools.cache
def set_up() -> ModuleType:
    """PyAV, silent, with the modules that it would import later, which a confined process can't."""
    import av
    import av.logging
    import av.subtitles.codeccontext
    import av.subtitles.stream
    import av.subtitles.subtitle

    av.logging.set_level(None)
    return av


@functools.cache
def codecs() -> str:
    """The names of all audio decoders."""
    av = set_up()
    return ",".join(name for name in sorted(av.codecs_available) if _decodes_sound(av, name))


def _decodes_sound(av: ModuleType, name: str) -> bool:
    try:
        return bool(av.Codec(name, "r").type == "audio")
    except (av.error.FFmpegError, ValueError):
        return False  # an encoder


def decode(source: Source, output: "Output") -> None:
    """Send the format, then the frames of the first sound track that isn't silent, then how much did not decode.

    Skips damaged parts, and zeros or junk in front; a truncated file gives whatever can be decoded. Decodes files
    joined end to end. Raises Refused if there is no sound or most of it doesn't decode; MemoryError; OSError if the
    file can't be read.
    """

    def read_at(position: int, count: int) -> bytes:
        return source.read_at(position - source.start, count)

    found, end = Found(), source.start + source.size
    at = beginning(read_at, source.start)
    n_files, n_false, unheard, unheard_from = 1, 0, at - source.start, end
    behind = _decode_file(source, at, end, output, found, tuple(FORMATS))
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
    lost_bytes = found.lost_bytes + found.idle_bytes + unheard + end - unheard_from
    output.send(b"E", f"{lost_bytes},{found.lost_s:.3f}".encode())


def _decode_file(source: Source, at: int, end: int, output: "Output", found: Found, formats: tuple[str, ...]) -> int:
    """Decode the file that begins at `at`; returns where its last packet ends."""
    source.show(at, end)
    behind = 0
    for start, stop in ogg_links(source.read_at, end - at) if source.read_at(0, 4) == b"OggS" else [(0, end - at)]:
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


def _decode(source: Source, output: "Output", found: Found, formats: tuple[str, ...]) -> int:
    av = set_up()
    container = _open(av, source, formats)
    demuxer = container.format.name.partition(",")[0]
    kind = FORMATS[demuxer]
    if len(container.streams) > MAX_STREAMS:
        raise Refused(f"The {kind} file has more than {MAX_STREAMS} tracks.")
    tracks = container.streams.audio
    if not tracks:
        raise Refused(f"The {kind} file has no audio track.")
    indices = [track.index for track in tracks if _decoder(track)]
    if not indices:
        raise Refused(f"The {kind} file's audio is encrypted or of an unknown encoding.")
    container.close()
    index = indices[0]
    if len(indices) > 1:
        index = next((other for other in indices if _has_sound(source, output, formats, other)), index)
    container, track = _open_track(source, formats, index)
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
                channels = frame.layout.nb_channels
                output.frame(frame.format.name, frame.sample_rate, frame.samples, planes(frame), channels)
    if source.failure is not None:
        raise source.failure
    return behind


def _has_sound(source: Source, output: "Output", formats: tuple[str, ...], index: int) -> bool:
    """Whether a track isn't silent: programs that record several tracks leave those without an input silent."""
    av = set_up()
    container, track = _open_track(source, formats, index)
    with container:
        for packet in _packets(av, container, track, source):
            try:
                frames = packet.decode()
            except _faults(av) as error:
                _no_memory(error)
                continue
            output.is_alive()
            if any(isinstance(frame, av.AudioFrame) and frame.samples and is_audible(frame) for frame in frames):
                return True
    return False


def _open_track(source: Source, formats: tuple[str, ...], index: int) -> tuple["InputContainer", Any]:
    """The file from its start, and its stream of this index, the only one that is read."""
    av = set_up()
    source.seek(0)
    container = _open(av, source, formats)
    track: Any = container.streams[index]
    for stream in container.streams:
        if stream is not track:
            stream.discard = av.stream.Discard.all
    track.codec_context.thread_count = 1
    return container, track


def _open(av: ModuleType, source: Source, formats: tuple[str, ...]) -> "InputContainer":
    options = {
        "format_whitelist": ",".join(formats),
        "codec_whitelist": codecs(),  # probing the streams decodes their first packets
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
    """Rejects every other file or address that a demuxer would open."""
    raise PermissionError("only the uploaded file is read")


def _faults(av: ModuleType) -> tuple[type[Exception], ...]:
    """What PyAV raises for a bad file: FFmpeg's errors, and Python's for numbers or text that it can't represent."""
    return (av.error.FFmpegError, ValueError, ArithmeticError, LookupError, PermissionError)


def _no_memory(error: Exception) -> None:
    """Raise MemoryError if FFmpeg ran out of memory: the rest of the file can't be read then."""
    if isinstance(error, MemoryError):
        raise error


def _decoder(track: Any) -> str | None:
    """The decoder's name; None if FFmpeg has none."""
    return None if track.codec_context is None else track.codec_context.codec.name


def _packets(av: ModuleType, container: "InputContainer", track: Any, source: Source) -> "Iterator[Packet[Any]]":
    """The track's packets. After a fault, FFmpeg tries again from its position."""
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
