"""FFmpeg: M4A, MP4, WebM and AAC give the same sound; hostile files give one clear error and bounded work."""

import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from service.audio.decode import KEPT_SECONDS, SAMPLE_RATE, decode
from service.audio.ffmpeg import MAX_STREAMS
from service.audio.sandbox import Limits
from service.errors import AudioTooLong, RequestError, UnreadableAudio
from tests.conftest import ROOT
from tests.support.av_sounds import encoded
from tests.support.sounds import FailingDisk, cuts, decodes_or_is_refused, samples, similarity, speechlike


@pytest.mark.parametrize(
    ("container", "codec", "rate", "layout", "video"),
    [
        ("ipod", "aac", 44_100, "stereo", False),  # .m4a
        ("mp4", "aac", 16_000, "mono", False),
        ("mp4", "aac", 48_000, "7.1", False),
        ("mp4", "aac", 48_000, "stereo", True),
        ("mp4", "alac", 44_100, "stereo", False),
        ("mov", "pcm_s16le", 22_050, "mono", False),
        ("mov", "pcm_s24be", 48_000, "stereo", False),
        ("mov", "pcm_u8", 22_050, "mono", False),
        ("mov", "pcm_f64le", 48_000, "stereo", False),
        ("adts", "aac", 44_100, "stereo", False),  # .aac
        ("webm", "libopus", 48_000, "mono", False),
        ("matroska", "flac", 44_100, "stereo", True),
        ("mpeg", "mp2", 44_100, "stereo", False),
        ("avi", "mp2", 44_100, "stereo", True),
        ("wav", "ac3", 48_000, "stereo", False),  # no plain WAV
    ],
)
def test_every_format_gives_the_same_sound(container: str, codec: str, rate: int, layout: str, video: bool) -> None:
    audio = decode(io.BytesIO(encoded(container, codec, rate, layout, video=video)))
    sound = samples(audio)
    assert sound.dtype == np.float32 and sound.ndim == 1
    assert audio.duration == pytest.approx(2, abs=0.13)  # AAC's frames fill 64 ms at 16 kHz
    assert sound.shape[0] == pytest.approx(audio.duration * SAMPLE_RATE, abs=1)
    assert similarity(speechlike(SAMPLE_RATE, 1, 2)[:, 0], sound) > 0.98


def with_tracks(n: int, container: str, levels: tuple[float, ...] = (), codec: str = "alac") -> bytes:
    """The same sound in each of n tracks, as loud as `levels` say for the first of them."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        tracks: list[Any] = [out.add_stream(codec, rate=SAMPLE_RATE) for _ in range(n)]
        for track in tracks:
            track.layout = "mono"
        sound = (speechlike(SAMPLE_RATE, 1, 1)[:, 0] * 32767).astype(np.int16)
        for start in range(0, len(sound), 4096):
            for track, level in zip(tracks, (*levels, *[1.0] * n), strict=False):
                piece = (sound[None, start : start + 4096] * level).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(piece, "s16p", "mono")
                frame.sample_rate, frame.pts = SAMPLE_RATE, start
                out.mux(track.encode(frame))
        for track in tracks:
            out.mux(track.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_the_first_of_many_tracks_is_heard(container: str) -> None:
    for n in (20, MAX_STREAMS):
        audio = decode(io.BytesIO(with_tracks(n, container)))
        assert audio.duration == pytest.approx(1, abs=0.01)
        assert similarity(speechlike(SAMPLE_RATE, 1, 1)[:, 0], samples(audio)) > 0.99
    with pytest.raises(UnreadableAudio, match=f"has more than {MAX_STREAMS} tracks"):
        decode(io.BytesIO(with_tracks(MAX_STREAMS + 2, container)))


@pytest.mark.parametrize(
    ("container", "codec"),
    [("matroska", "alac"), ("mp4", "alac"), ("mp4", "aac"), ("mpegts", "mp2"), ("matroska", "flac")],
)
def test_the_first_track_that_is_not_silent_is_heard(container: str, codec: str) -> None:
    """OBS records one for each input, whether anything is plugged in or not."""
    for levels, heard in (((0.0,), 1.0), ((0.0, 0.001, 0.4), 0.4), ((0.3, 1.0), 0.3), ((0.0, 0.0, 0.0), 0.0)):
        sound = samples(decode(io.BytesIO(with_tracks(max(2, len(levels)), container, levels, codec))))
        assert np.abs(sound).max() == pytest.approx(0.5 * heard, abs=0.1), levels
        assert len(sound) == pytest.approx(SAMPLE_RATE, rel=0.15)


def test_tags_in_front_of_aac_are_passed_over() -> None:
    aac = encoded("adts", "aac")
    tagged = decode(io.BytesIO(b"ID3\x04\0\0\0\0\1\0" + bytes(128) + aac))
    assert tagged.duration == decode(io.BytesIO(aac)).duration and tagged.format == "AAC"


def test_a_change_of_rate_inside_is_followed() -> None:
    audio = decode(io.BytesIO(encoded("adts", "aac", 44_100) + encoded("adts", "aac", 16_000, "mono")))
    assert audio.duration == pytest.approx(4, abs=0.3)
    sound = samples(audio)
    for half in (sound[: len(sound) // 2], sound[len(sound) // 2 :]):
        assert similarity(speechlike(SAMPLE_RATE, 1, 2)[:, 0], half, within=3000) > 0.97


def test_long_audio_is_decoded_again_in_small_blocks() -> None:
    audio = decode(io.BytesIO(encoded("ipod", "aac", 8000, "mono", KEPT_SECONDS + 3)))
    blocks = list(audio.blocks())
    assert len(blocks) > 10 and max(block.nbytes for block in blocks) < 1 << 20
    assert sum(block.size for block in blocks) == pytest.approx(audio.duration * SAMPLE_RATE, abs=1)
    np.testing.assert_array_equal(samples(audio), np.concatenate(blocks))


@pytest.mark.parametrize(
    ("container", "codec", "rate"), [("ipod", "aac", 44_100), ("adts", "aac", 44_100), ("webm", "libopus", 48_000)]
)
def test_every_truncation_is_read_as_far_as_it_goes_or_refused(
    container: str, codec: str, rate: int, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = encoded(container, codec, rate)
    durations = [decodes_or_is_refused(whole[:cut]) for cut in [*cuts(len(whole), 200), len(whole)]]
    assert durations[0] is None and durations[-1] == pytest.approx(2, abs=0.1)
    found = [duration for duration in durations if duration is not None]
    assert found == sorted(found)
    assert len(found) > 15 or container == "ipod"  # whose index comes last
    assert capfd.readouterr() == ("", "")


def test_flipped_bytes_are_read_or_refused(capfd: pytest.CaptureFixture[str]) -> None:
    chance = np.random.default_rng(0)
    for kind in (("ipod", "aac"), ("adts", "aac"), ("webm", "libopus", 48_000), ("mpeg", "mp2"), ("avi", "mp2")):
        whole = encoded(*kind)
        for turn in range(30):
            damaged = bytearray(whole)
            at = chance.integers(0, len(whole) if turn % 2 else 1000, 8)
            if turn % 3 == 0:
                at = len(whole) - 1 - at  # an MP4's index
            for position in at:
                damaged[position] = chance.integers(0, 256)
            decodes_or_is_refused(bytes(damaged))
    assert capfd.readouterr() == ("", "")


def test_a_video_without_sound_says_so() -> None:
    with pytest.raises(UnreadableAudio, match="has no audio track") as caught:
        decode(io.BytesIO(encoded("mp4", "", video=True)))
    assert (caught.value.status, caught.value.param) == (400, "file")


@pytest.mark.parametrize("start", [b"", b"\0\0\0\x18ftypM4A ", b"\x1aE\xdf\xa3", b"\xff\xf1\x50\x80", b"RIFF0000AVI "])
def test_text_posing_as_audio_is_refused(start: bytes) -> None:
    with pytest.raises(UnreadableAudio):
        decode(io.BytesIO(start + b"Lorem ipsum dolor sit amet, consectetur adipiscing elit.\n" * 500))


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{path}'\n",
        "[playlist]\nFile1={path}\n",
        '<?xml version="1.0"?><MPD><Period><BaseURL>{path}</BaseURL></Period></MPD>',
    ],
)
def test_playlists_do_not_make_the_service_open_other_files(tmp_path: Path, playlist: str) -> None:
    secret = tmp_path / "secret.aac"
    secret.write_bytes(encoded("adts", "aac"))
    for start in ("", "\n", "ID3\x04\0\0\0\0\0\0"):
        with pytest.raises(UnreadableAudio):
            decode(io.BytesIO((start + playlist.format(path=secret)).encode()))


def test_an_mp4_does_not_make_the_service_open_other_files(tmp_path: Path) -> None:
    """A data reference names another file; FFmpeg could be told to read the samples there."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(MDAT * 2000)
    path = str(secret).encode()
    entry = struct.pack(">hH", 2, len(path)) + path + bytes(len(path) % 2) + struct.pack(">hH", -1, 0)
    alias = box(b"alis", u32(0), bytes(150), entry)
    with pytest.raises(UnreadableAudio):
        decode(io.BytesIO(mp4(track(1000, reference=alias), data=b"")))


# An MP4 written by hand, of one AAC frame of silence told 2000 times.
MDAT = b"\x21\x10\x04\x60\x8c\x1c"


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return u32(len(data) + 8) + kind + data


def track(packets: int, edits: int = 0, reference: bytes = b"") -> bytes:
    """A sound track whose index claims `packets` packets and `edits` edits."""
    m4a = encoded("mp4", "aac", 44_100, "mono", 0.2)
    at = m4a.index(b"esds") - 4
    esds = m4a[at : at + int.from_bytes(m4a[at : at + 4], "big")]
    mp4a = box(b"mp4a", bytes(6), b"\0\1", bytes(8), struct.pack(">HHHHI", 1, 16, 0, 0, 44_100 << 16), esds)
    index = (
        box(b"stsd", u32(0, 1), mp4a)
        + box(b"stts", u32(0, 1, packets, 1024))
        + box(b"stsc", u32(0, 1, 1, packets, 1))
        + box(b"stsz", u32(0, len(MDAT), packets))
        + box(b"stco", u32(0, 1, 24))
    )
    dinf = box(b"dinf", box(b"dref", u32(0, 1), reference or box(b"url ", u32(1))))
    minf = box(b"minf", box(b"smhd", u32(0, 0)), dinf, box(b"stbl", index))
    mdhd = box(b"mdhd", u32(0, 0, 0, 44_100, packets * 1024 & 0xFFFF_FFFF, 0))
    mdia = box(b"mdia", mdhd, box(b"hdlr", u32(0, 0), b"soun", bytes(13)), minf)
    elst = box(b"elst", u32(0, edits), u32(1000, 0, 1 << 16) * edits)
    return box(b"trak", box(b"tkhd", bytes(84)), box(b"edts", elst) if edits else b"", mdia)


def mp4(*tracks: bytes, data: bytes = MDAT * 2000) -> bytes:
    return (
        box(b"ftyp", b"isom", u32(0))
        + box(b"mdat", data)
        + box(b"moov", box(b"mvhd", u32(0, 0, 0, 1000, 1000), bytes(80)), *tracks)
    )


HEARD = 2000 * 1024 / 44_100  # seconds


def test_three_hours_claimed_in_a_header_do_not_count() -> None:
    assert decode(io.BytesIO(mp4(track(3 * 3600 * 44_100 // 1024)))).duration == pytest.approx(HEARD, abs=0.1)
    m4a = bytearray(encoded("ipod", "aac"))
    honest = decode(io.BytesIO(bytes(m4a))).duration
    for name, at in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        at += m4a.index(name)
        m4a[at : at + 4] = u32(3 * 3600 * 44_100)
    assert decode(io.BytesIO(bytes(m4a))).duration == pytest.approx(honest, abs=0.1)


def test_edits_without_end_are_no_endless_work() -> None:
    """FFmpeg hears them all, 100,000 seconds, and looks for each in the whole index."""
    many = mp4(track(2000, edits=100_000))
    with pytest.raises(RequestError):
        decode(io.BytesIO(many), max_seconds=60, limits=Limits(stall_s=0.5))


PROBE = """
import io, resource, sys
from service.audio.decode import decode
from service.errors import RequestError
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        try:
            decode(file)
        except RequestError as error:
            assert error.status == 400
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_an_index_of_millions_of_packets_takes_little_memory(tmp_path: Path) -> None:
    claims = {
        "honest": mp4(track(2000)),
        "packets": mp4(track(170_000_000)),
        "tracks": mp4(*[track(1_000_000)] * MAX_STREAMS),
        "too-many-tracks": mp4(*[track(2000)] * 1000),
    }
    for name, content in claims.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", PROBE, *(str(tmp_path / name) for name in claims)]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    first, *_, last = (int(line) for line in answer.stdout.split())
    assert last < first + 50  # MiB; 170 million packets would take 4 GB
    assert answer.stderr == ""


def test_more_seconds_than_allowed_are_refused() -> None:
    long = encoded("ipod", "aac", 8000, "mono", 20)
    with pytest.raises(AudioTooLong, match="5 s"):
        decode(io.BytesIO(long), max_seconds=5)
    assert decode(io.BytesIO(long), max_seconds=21).duration == pytest.approx(20, abs=0.3)


def test_a_file_closed_or_failing_is_not_the_users_mistake() -> None:
    closed = io.BytesIO(encoded("adts", "aac", 8000, "mono", KEPT_SECONDS + 3))
    audio = decode(closed)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        list(audio.blocks())
    with pytest.raises(OSError, match="Input/output error"):
        decode(FailingDisk(encoded("adts", "aac", seconds=20)))
