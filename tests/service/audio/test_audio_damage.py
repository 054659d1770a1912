"""Files as real users send them, damaged, cut and joined: each as long as FFmpeg finds it, or a clear refusal."""

import io
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from service.audio.decode import SAMPLE_RATE, decode
from service.errors import RequestError, UnreadableAudio
from tests.support import av_sounds
from tests.support.sounds import encoded, samples, similarity, speechlike

SECONDS = 4

# name → (bytes at a rate and with channels). BARE: of frames only, so that a player finds the next one anywhere.
BARE: dict[str, Callable[[int, int], bytes]] = {
    "mp3": lambda rate, channels: encoded(speechlike(rate, channels, SECONDS), rate, "MP3"),
    "aac": lambda rate, channels: of_av("adts", "aac", rate, channels),
    "ac3": lambda rate, channels: of_av("ac3", "ac3", rate, channels),
    "eac3": lambda rate, channels: of_av("eac3", "eac3", rate, channels),
    "mp2": lambda rate, channels: of_av("mp2", "mp2", rate, channels),
    "flac": lambda rate, channels: encoded(speechlike(rate, channels, SECONDS), rate, "FLAC"),
    "ts": lambda rate, channels: of_av("mpegts", "aac", rate, channels),
}
OTHERS: dict[str, Callable[[int, int], bytes]] = {
    "ogg": lambda rate, channels: encoded(speechlike(rate, channels, SECONDS), rate, "OGG", "VORBIS"),
    "opus": lambda rate, channels: encoded(speechlike(48_000, channels, SECONDS), 48_000, "OGG", "OPUS"),
    "m4a": lambda rate, channels: of_av("ipod", "aac", rate, channels),
    "webm": lambda rate, channels: of_av("webm", "libopus", 48_000, channels),
    "mka": lambda rate, channels: of_av("matroska", "flac", rate, channels),
    "flv": lambda rate, channels: of_av("flv", "aac", rate, channels),
    "wv": lambda rate, channels: of_av("wv", "wavpack", rate, channels),
    "tta": lambda rate, channels: of_av("tta", "tta", rate, channels),
    "asf": lambda rate, channels: of_av("asf", "aac", rate, channels),
    "avi": lambda rate, channels: of_av("avi", "mp2", rate, channels),
    "mpeg": lambda rate, channels: of_av("mpeg", "mp2", rate, channels),
    "w64": lambda rate, channels: of_av("w64", "pcm_s16le", rate, channels),
    "caf": lambda rate, channels: of_av("caf", "alac", rate, channels),
    "aiff": lambda rate, channels: encoded(speechlike(rate, channels, SECONDS), rate, "AIFF"),
    "au": lambda rate, channels: encoded(speechlike(rate, channels, SECONDS), rate, "AU"),
    "g722.wav": lambda rate, channels: of_av("wav", "g722", 16_000, 1),
    "g726.wav": lambda rate, channels: of_av("wav", "g726", 8000, 1),
    "ac3.wav": lambda rate, channels: of_av("wav", "ac3", rate, channels),
    "ima.wav": lambda rate, channels: encoded(speechlike(rate, channels, SECONDS), rate, "WAV", "IMA_ADPCM"),
    "rf64": lambda rate, channels: encoded(speechlike(rate, channels, SECONDS), rate, "RF64", "PCM_24"),
    "amr": lambda rate, channels: of_av("amr", "libopencore_amrnb", 8000, 1),
}
KINDS = BARE | OTHERS


def of_av(container: str, codec: str, rate: int, channels: int) -> bytes:
    return av_sounds.encoded(container, codec, rate, "mono" if channels == 1 else "stereo", SECONDS)


def file(kind: str, rate: int = 44_100, channels: int = 1) -> bytes:
    return KINDS[kind](rate, channels)


def length_of_ffmpeg(content: bytes) -> float:
    """Seconds that FFmpeg decodes of a file; 0 where it cannot open it."""
    n: Counter[int] = Counter()
    try:
        with av.open(io.BytesIO(content), "r") as container:
            for packet in container.demux(container.streams.audio[0]):
                try:
                    for frame in packet.decode():
                        assert isinstance(frame, av.AudioFrame)
                        n[frame.sample_rate] += frame.samples
                except av.error.FFmpegError:
                    continue
    except (av.error.FFmpegError, IndexError):
        pass
    return sum(count / rate for rate, count in n.items())


def zeros_inside(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes(1024) + content[at + 1024 :]


def junk_put_in(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + np.random.default_rng(1).bytes(3000) + content[at:]


def flipped(content: bytes) -> bytes:
    damaged = bytearray(content)
    for at in np.random.default_rng(2).integers(len(content) // 4, len(content), 8):
        damaged[at] ^= 0xFF
    return bytes(damaged)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeros inside": zeros_inside,
    "junk put in": junk_put_in,
    "flipped bytes": flipped,
    "cut off": lambda content: content[: len(content) * 7 // 10],
    "with a tag in front": lambda content: b"ID3\x04\0\0\0\0\x01\0" + bytes(128) + content,
    "with a tag behind": lambda content: content + b"TAG" + bytes(125),
}


def check(content: bytes) -> None:
    """Decoding gives what FFmpeg does or more; a file that gives FFmpeg half of its sound or less may be refused."""
    expected = length_of_ffmpeg(content)
    try:
        found = decode(io.BytesIO(content)).duration
    except RequestError as error:
        assert (error.status, error.param) == (400, "file")
        assert expected <= SECONDS / 2, f"refused, though FFmpeg decodes {expected} s: {error}"
    else:
        assert found == pytest.approx(expected, rel=0.01) or (found > expected and found > 0.9 * SECONDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_heard(kind: str) -> None:
    audio = decode(io.BytesIO(file(kind)))
    assert audio.duration == pytest.approx(length_of_ffmpeg(file(kind)), rel=0.01)
    assert similarity(speechlike(SAMPLE_RATE, 1, SECONDS)[:, 0], samples(audio)) > (0.9 if kind == "amr" else 0.98)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_as_long_as_ffmpeg_finds_it(kind: str) -> None:
    whole = file(kind)
    for damage in DAMAGES.values():
        check(damage(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_twice_is_heard_twice(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "wisp"):
        audio = decode(io.BytesIO(2 * file(kind)))
    assert audio.duration == pytest.approx(2 * length_of_ffmpeg(file(kind)), rel=0.02)
    sound = samples(audio)
    for half in (sound[: len(sound) // 2], sound[len(sound) // 2 :]):
        similar = similarity(speechlike(SAMPLE_RATE, 1, SECONDS)[:, 0], half, within=4000)
        assert similar > (0.85 if kind == "amr" else 0.95)
    assert not caplog.records or kind == "amr"  # whose decoder takes the second head for a frame


PCM = encoded(speechlike(16_000, 1, 2), 16_000, "WAV", "PCM_16")
LIST = b"LIST\x04\0\0\0INFO"


@pytest.mark.parametrize("first", ["wav", "ima.wav", "m4a", "caf", "aiff", "flv", "wv", "w64", "tta", "mka"])
@pytest.mark.parametrize("second", ["wav", "ima.wav", "mp3", "m4a", "flac", "opus", "aac", "ac3", "wv", "caf", "aiff"])
def test_files_of_other_kinds_are_heard_one_after_the_other(first: str, second: str) -> None:
    one, other = (PCM if kind == "wav" else file(kind) for kind in (first, second))
    seconds = [decode(io.BytesIO(content)).duration for content in (one, other)]
    if second not in BARE:  # frames have no end
        all_three = decode(io.BytesIO(one + other + LIST + one)).duration
        assert all_three == pytest.approx(2 * seconds[0] + seconds[1], abs=0.1)
    assert decode(io.BytesIO(one + other)).duration == pytest.approx(sum(seconds), abs=0.1)


def test_a_file_behind_chunks_or_a_tag_is_heard() -> None:
    tag = b"ID3\x04\0\0\0\0\x01\0" + bytes(128)
    for one in (PCM, file("ima.wav")):
        length = int.from_bytes(one[4:8], "little") + len(LIST)
        listed = one[:4] + length.to_bytes(4, "little") + one[8:] + LIST
        for between in (b"", tag):
            both = decode(io.BytesIO(listed + between + file("mp3"))).duration
            assert both == pytest.approx(decode(io.BytesIO(one)).duration + 4.05, abs=0.1)


def test_a_joined_file_that_cannot_be_opened_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    cut = file("m4a")[:30_000]  # its index is at the end
    assert b"moov" not in cut
    with caplog.at_level(logging.WARNING, "wisp"):
        assert decode(io.BytesIO(file("ima.wav") + cut)).duration == pytest.approx(4.08, abs=0.1)
    assert f"{len(cut)} bytes cannot be decoded" in caplog.text


def test_false_heads_are_bounded_work_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    false = b"TTA1\x01\0" + bytes(94)
    with caplog.at_level(logging.WARNING, "wisp"):
        assert decode(io.BytesIO(file("ima.wav") + false * 5000)).duration == pytest.approx(4.08, abs=0.1)
    assert f"{len(false) * 5000} bytes cannot be decoded" in caplog.text


JUNK = {
    "a zero": bytes(1),
    "zeros": bytes(4096),
    "more zeros than a piece": bytes((1 << 20) + 5),
    "noise": np.random.default_rng(3).bytes(5000),
    "text": b"HTTP/1.1 200 OK\r\nContent-Type: audio/flac\r\n\r\n",
    "0xFF": b"\xff" * 3000,
}


@pytest.mark.parametrize("kind", [*KINDS, "wav"])
def test_junk_in_front_is_passed_over(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = file(kind) if kind != "wav" else encoded(speechlike(44_100, 1, SECONDS), 44_100, "WAV")
    for name, junk in JUNK.items():
        caplog.clear()
        audio = decode(io.BytesIO(junk + whole))
        assert audio.duration == pytest.approx(length_of_ffmpeg(whole), rel=0.03), name
        sound = samples(audio)
        assert similarity(speechlike(SAMPLE_RATE, 1, SECONDS)[:, 0], sound) > (0.9 if kind == "amr" else 0.97), name
        if len(junk) >= 3000 and kind not in (*BARE, "mpeg"):
            assert "bytes cannot be decoded" in caplog.text, name


def test_sound_inside_a_file_of_another_kind_is_not_searched_for() -> None:
    for start in (b"PK\3\4", b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(UnreadableAudio):
            decode(io.BytesIO(start + bytes(500) + file("m4a")))


@pytest.mark.parametrize("kind", sorted(BARE.keys() - {"ts", "flac"}))
def test_a_file_of_frames_may_begin_anywhere(kind: str) -> None:
    whole = file(kind)
    for start in (300, 1000, len(whole) // 3):
        audio = decode(io.BytesIO(whole[start:]))
        assert audio.duration == pytest.approx(length_of_ffmpeg(whole[start:]), rel=0.01)
        assert audio.duration > SECONDS * (1 - start / len(whole)) - 0.3


@pytest.mark.parametrize("kind", ["mp3", "aac", "ac3", "eac3", "mp2", "ogg"])
@pytest.mark.parametrize(("one", "other"), [((44_100, 1), (44_100, 2)), ((44_100, 2), (32_000, 1))])
def test_a_file_that_changes_inside_is_heard_to_its_end(
    kind: str, one: tuple[int, int], other: tuple[int, int]
) -> None:
    audio = decode(io.BytesIO(file(kind, *one) + file(kind, *other)))
    assert audio.duration == pytest.approx(2 * SECONDS, rel=0.02)
    sound = samples(audio)
    for half in (sound[: len(sound) // 2], sound[len(sound) // 2 :]):
        assert similarity(speechlike(SAMPLE_RATE, 1, SECONDS)[:, 0], half, within=4000) > 0.95


@pytest.mark.parametrize("kind", ["mp3", "aac", "flac"])
def test_a_file_that_is_mostly_damaged_is_refused(kind: str) -> None:
    whole = file(kind)
    start = len(whole) // 4
    rest = np.random.default_rng(0).bytes(len(whole) - start)
    with pytest.raises(UnreadableAudio, match=r"Most of the .* file is damaged"):
        decode(io.BytesIO(whole[:start] + rest))


@pytest.mark.parametrize("kind", ["mp3", "aac", "flac", "ac3", "eac3", "mp2"])
def test_padding_and_text_are_no_damage_but_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = file(kind)
    for padding in (bytes(300_000), b"\xff" * 300_000, b"lorem ipsum dolor\n" * 12_000):
        caplog.clear()
        assert decode(io.BytesIO(whole + padding)).duration == pytest.approx(SECONDS, abs=0.1)
        assert len(caplog.records) == 1
    if kind != "flac":  # which FFmpeg does not look for behind anything
        assert decode(io.BytesIO(bytes(100_000) + whole)).duration == pytest.approx(SECONDS, abs=0.1)


def test_files_joined_by_the_thousand_are_bounded_work() -> None:
    tiny = encoded(np.zeros((3, 1)), 16_000, "WAV", "PCM_16")
    start = time.monotonic()
    assert decode(io.BytesIO(PCM + tiny * 5000)).duration == pytest.approx(2.2, abs=0.1)
    assert time.monotonic() - start < 20


def test_what_is_lost_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    damaged = junk_put_in(file("mp3"))
    with caplog.at_level(logging.WARNING, "wisp"):
        audio = decode(io.BytesIO(damaged))
        samples(audio)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["the MP3 file is damaged"]
    caplog.clear()
    decode(io.BytesIO(file("mp3") + b"TAG" + bytes(125)))
    decode(io.BytesIO(file("mp3") + b"APETAGEX" + bytes(4) + (5000).to_bytes(4, "little") + bytes(16) + bytes(5000)))
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("mono_then_stereo.mp3", 8.1),
        ("cut_in_mid_frame.mp3", 4),
        ("gap_1024_zeros.mp3", 8.1),
        ("size0.wav", 4),
        ("cat.wav", 8),
        ("float_x1000.wav", 4),
        ("4_bytes_wrong.flac", 11.7),
    ],
)
def test_files_that_users_sent(shared: Path, name: str, seconds: float) -> None:
    """Each has the sentence of the first 4 s of jfk.wav, some twice or three times."""
    with (shared / "audio-failing" / name).open("rb") as damaged, (shared / "speech/jfk.wav").open("rb") as clean:
        audio, sentence = decode(damaged), samples(decode(clean))[: 4 * SAMPLE_RATE]
    assert audio.duration == pytest.approx(seconds, abs=0.05)
    sound = samples(audio)
    for start in range(0, round(seconds / 4) * 4 - 3, 4):
        part = sound[start * SAMPLE_RATE :][: 4 * SAMPLE_RATE]
        assert similarity(sentence, part, within=4500) > (0.6 if name.endswith(".flac") else 0.97)
    assert np.abs(sound).max() <= 1.001


def test_flac_of_32_bits(shared: Path) -> None:
    with (shared / "audio-failing/s32.flac").open("rb") as content:
        assert decode(content).duration == 0.5
