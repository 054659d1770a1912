"""Plain WAV files whose headers are wrong, old or unfinished."""

import io
import logging
import struct
import time

import numpy as np
import pytest

from service.audio.decode import MAX_RATE_CHANGES, RATES, SAMPLE_RATE, decode
from service.audio.wav import MAX_CHUNKS, MAX_PARTS, open_wav
from service.errors import UnreadableAudio
from tests.support import av_sounds
from tests.support.sounds import encoded, samples, similarity, speechlike

RATE = 16_000
SOUND = (speechlike(RATE, 1, 2)[:, 0] * 32767).astype("<i2").tobytes()


def wav(data: bytes = SOUND, size: int | None = None, behind: bytes = b"", before: bytes = b"") -> bytes:
    """16-bit mono; `size`: what the header says; chunks before the sound and behind it."""
    fmt = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    size = len(data) if size is None else size
    body = b"WAVEfmt \x10\0\0\0" + fmt + before + b"data" + struct.pack("<I", size) + data + behind
    return b"RIFF" + struct.pack("<I", min(len(body), 0xFFFF_FFFF)) + body


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (wav(), 2),
        (wav(size=0), 2),
        (wav(size=0xFFFF_FFFF), 2),
        (wav(size=0x7FFF_F000), 2),
        (wav(size=len(SOUND) // 4), 2),  # unfinished: written as the recording began
        (wav(behind=chunk(b"LIST", b"INFO" + bytes(200_001))), 2),
        (wav(behind=chunk(b"id3 ", bytes(90_000)) + bytes(3)), 2),
        (wav(behind=b"TAG" + bytes(125)), 2),
        (wav(before=chunk(b"bext", bytes(603)) + chunk(b"junk", b"odd")), 2),
        (wav() + wav(), 4),
        (wav(behind=chunk(b"LIST", b"INFO")) + wav(size=0), 4),
        (wav() + encoded(speechlike(44_100, 2, 3), 44_100, "WAV", "PCM_24"), 5),
        (encoded(speechlike(8000, 1, 1), 8000, "WAV", "PCM_U8", endian="BIG") + wav(), 3),
    ],
)
def test_all_of_the_sound_is_read(content: bytes, seconds: float) -> None:
    audio = decode(io.BytesIO(content))
    assert audio.duration == pytest.approx(seconds, abs=0.01)
    assert audio.format == "WAV"
    start = samples(audio)[-2 * SAMPLE_RATE :][:SAMPLE_RATE]
    assert np.abs(start).max() > 0.4


def test_wav_that_is_not_plain_is_left_to_ffmpeg() -> None:
    for subtype in ("ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"):
        content = encoded(speechlike(8000, 1, 2), 8000, "WAV", subtype)
        assert decode(io.BytesIO(content)).duration == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "CAF", "RF64", "W64"])
@pytest.mark.parametrize("scale", [100, 32_768, 2**31])
def test_float_in_the_range_of_integers_is_scaled(format: str, subtype: str, scale: int) -> None:
    sound = speechlike(RATE, 2, 1)
    found = samples(decode(io.BytesIO(encoded(sound * scale, RATE, format, subtype))))
    np.testing.assert_allclose(found, sound[:, 0] / np.abs(sound).max(), atol=1e-5)


def test_long_float_is_scaled_in_every_reading() -> None:
    quiet_first = np.linspace(0, 1, 8000 * 70)[:, None] * speechlike(8000, 1, 70) * 32_768
    audio = decode(io.BytesIO(encoded(quiet_first, 8000, "WAV", "FLOAT")))
    for _ in range(2):
        assert np.abs(samples(audio)).max() == pytest.approx(1, abs=0.05)


def test_plain_wav_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.audio.decoder_client.Decoder", None)
    assert decode(io.BytesIO(wav())).duration == 2


ID3 = b"ID3\x04\0\0" + bytes([0, 12, 27, 0]) + bytes(12 << 14 | 27 << 7)
NOISE = np.random.default_rng(3).bytes(200_000)


@pytest.mark.parametrize(
    ("behind", "n_left"),
    [
        (ID3, 0),
        (b"APETAGEX" + bytes(4) + len(NOISE).to_bytes(4, "little") + bytes(16) + NOISE, 0),
        (b"\xff\xd8\xff\xe0" + NOISE, len(NOISE) + 4),
        (b"\x89PNG\r\n\x1a\n" + NOISE, len(NOISE) + 8),
        (b"%PDF-1.4" + NOISE, len(NOISE) + 8),
        (b"PK\3\4" + NOISE, len(NOISE) + 4),
        (ID3 + NOISE, len(NOISE)),
        (NOISE[:20_000], 20_000),  # under a second
    ],
)
def test_what_follows_the_sound_is_not_taken_for_it(
    behind: bytes, n_left: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wisp"):
        assert decode(io.BytesIO(wav(behind=behind))).duration == 2
    lines = [record.getMessage() for record in caplog.records]
    expected = [f"the WAV file is damaged: {n_left} bytes after the sound are not sound"] if n_left else []
    assert lines == expected


def test_chunks_are_counted_over_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = chunk(b"junk", b"")
    for content in (wav(behind=empty * 2000), wav(before=empty * 2000), wav(SOUND[:100]) * 700):
        reads = 0

        class Counted(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                nonlocal reads
                reads += 1
                return super().read(size)

        assert open_wav(Counted(content), RATES, 2) is None
        assert reads < 10 * MAX_CHUNKS
    assert decode(io.BytesIO(wav(behind=empty * 2000))).duration == 2
    assert decode(io.BytesIO(wav(SOUND[:3200]) * 700)).duration == pytest.approx(70)


def test_sound_of_an_odd_size_may_lack_its_padding() -> None:
    odd = encoded(speechlike(8001, 1, 1), 8001, "WAV", "PCM_U8")[:-1]
    assert len(odd) % 2
    assert decode(io.BytesIO(odd + odd)).duration == pytest.approx(2, abs=0.001)


def test_recordings_read_here_and_changes_of_rate_are_bounded() -> None:
    assert open_wav(io.BytesIO(wav(SOUND[:100]) * MAX_PARTS), RATES, 2) is not None
    assert open_wav(io.BytesIO(wav(SOUND[:100]) * (MAX_PARTS + 1)), RATES, 2) is None
    few, many = (
        b"".join(encoded(speechlike(rate, 1, 0.1), rate, "WAV", "PCM_16") for rate in rates)
        for rates in (range(8000, 8000 + MAX_RATE_CHANGES + 1), range(8000, 8000 + MAX_RATE_CHANGES + 2))
    )
    assert decode(io.BytesIO(few)).duration == pytest.approx(0.1 * (MAX_RATE_CHANGES + 1), abs=0.01)
    with pytest.raises(UnreadableAudio, match="changes its sample rate more than 64 times"):
        decode(io.BytesIO(many))


def test_thousands_of_recordings_take_little_of_this_process() -> None:
    tiny = b"".join(encoded(np.zeros((3, 1)), 44_101 if turn % 2 else 383_999, "WAV", "PCM_16") for turn in range(2000))
    before = time.process_time()
    with pytest.raises(UnreadableAudio, match="changes its sample rate"):
        decode(io.BytesIO(tiny))
    assert time.process_time() - before < 1


@pytest.mark.parametrize("gap", [b"", b"\1", bytes(5), bytes(1001), bytes(99_999), b"\1" * 5])
@pytest.mark.parametrize("size", [None, 0, 0xFFFF_FFFF, 2000])
def test_a_second_recording_is_found_wherever_it_begins(gap: bytes, size: int | None) -> None:
    audio = decode(io.BytesIO(wav(size=size) + gap + wav()))
    assert audio.duration == pytest.approx(4 + (len(gap) / RATE / 2 if size is not None else 0), abs=0.01)
    assert similarity(speechlike(RATE, 1, 2)[:, 0], samples(audio)[-2 * RATE :]) > 0.99


@pytest.mark.parametrize(
    ("format", "subtype"), [("MP3", None), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_16")]
)
def test_a_file_of_another_kind_is_never_taken_for_samples(format: str, subtype: str | None) -> None:
    other = encoded(speechlike(RATE, 1, 4), RATE, format, subtype)
    for gap in (0, 5, 1001, 99_999):
        assert decode(io.BytesIO(wav() + bytes(gap) + other)).duration == pytest.approx(6, abs=0.1)


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_F000])
@pytest.mark.parametrize("kind", ["mp3", "mp3 of 44.1 kHz", "mp2", "aac", "flac", "ogg", "aiff"])
def test_sound_of_unknown_size_ends_where_another_file_begins(kind: str, size: int) -> None:
    """Bare frames too, without any header or tag between."""
    sound = speechlike(RATE, 1, 4)
    other = {
        "mp3": lambda: encoded(sound, RATE, "MP3"),
        "mp3 of 44.1 kHz": lambda: av_sounds.encoded("mp3", "libmp3lame", 44_100, "stereo", 4),
        "mp2": lambda: av_sounds.encoded("mp2", "mp2", 48_000, "mono", 4),
        "aac": lambda: av_sounds.encoded("adts", "aac", RATE, "mono", 4),
        "flac": lambda: encoded(sound, RATE, "FLAC", "PCM_16"),
        "ogg": lambda: encoded(sound, RATE, "OGG", "VORBIS"),
        "aiff": lambda: encoded(sound, RATE, "AIFF", "PCM_16"),
    }[kind]()
    for gap in (0, 1, 1000):
        audio = decode(io.BytesIO(wav(size=size) + b"\1" * gap + other))
        assert audio.duration == pytest.approx(6, abs=0.15)
        found = samples(audio)
        assert similarity(speechlike(RATE, 1, 2)[:, 0], found[: 2 * RATE]) > 0.99
        assert similarity(sound[:, 0], found[2 * RATE :], within=3000) > 0.97


def test_samples_that_repeat_a_frames_header_are_samples() -> None:
    """A tone may have the two bytes of a header in every period; noise has them by chance."""
    period = np.random.default_rng(0).integers(-20_000, 20_000, 72).astype("<i2")  # 144 bytes, as a frame of 32 kbit/s
    period[10:12] = np.frombuffer(b"\xff\xf3\x48\xc4", "<i2")
    assert decode(io.BytesIO(wav(np.tile(period, 500).tobytes(), size=0))).duration == pytest.approx(72 * 500 / RATE)
    noise = np.random.default_rng(1).bytes(20_000_000)
    assert decode(io.BytesIO(wav(noise, size=0))).duration == pytest.approx(10_000_000 / RATE)


def swapped(content: bytes) -> bytes:
    return np.frombuffer(content[: len(content) // 2 * 2], "<u2").byteswap().tobytes()


@pytest.mark.parametrize("codec", ["ac3", "mp2", "mp3"])
def test_compressed_sound_in_a_header_of_pcm_is_left_to_ffmpeg(codec: str) -> None:
    sound = (
        encoded(speechlike(48_000, 1, 4), 48_000, "MP3") if codec == "mp3" else av_sounds.encoded(codec, codec, 48_000)
    )
    for content in (sound, swapped(sound))[: 2 if codec == "ac3" else 1]:
        assert open_wav(io.BytesIO(wav(content)), RATES, 2) is None
        assert open_wav(io.BytesIO(wav(bytes(4000) + content)), RATES, 2) is None


@pytest.mark.parametrize("sync", ["7ffe8001", "fe7f0180", "1fffe800", "ff1f00e8"])
def test_dts_in_a_header_of_pcm_is_left_to_ffmpeg(sync: str) -> None:
    assert open_wav(io.BytesIO(wav(bytes.fromhex(sync) + SOUND)), RATES, 2) is None


def test_two_chunks_of_sound_are_both_heard() -> None:
    audio = decode(io.BytesIO(wav(behind=chunk(b"LIST", b"INFO") + chunk(b"data", SOUND))))
    assert audio.duration == 4
    assert similarity(speechlike(RATE, 1, 2)[:, 0], samples(audio)[2 * RATE :]) > 0.99
