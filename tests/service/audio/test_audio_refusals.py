"""Decoding what is broken, forged or no audio at all: one clear error each, and little work."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from service.audio.decode import KEPT_SECONDS, MAX_VALUES_PER_SECOND, SAMPLE_RATE, decode
from service.errors import AudioTooLong, AudioTooShort, RequestError, UnreadableAudio
from tests.conftest import shared_path
from tests.support.sounds import FailingDisk, cuts, decodes_or_is_refused, encoded, samples, speechlike


def odd_files() -> list[str]:
    folder = shared_path() / "audio-odd"
    return sorted(path.name for path in folder.glob("*.wav")) or ["absent"]


READABLE_ODD = {
    "pocketsphinx-chan3.2chan.wav": 20.871,
    "test-44100Hz-be-1ch-4bytes.wav": 0.1,
    "test-44100Hz-le-1ch-4bytes.wav": 0.1,
    "test-44100Hz-le-1ch-4bytes-rf64.wav": 0.1,
    "test-8000Hz-le-2ch-1byteu.wav": 0.1,
}
BROKEN_ODD = ("-awful", "-bad", "-evil", "-no-data", "incomplete-chunk", "36bit", "45bit", "53bit")


@pytest.mark.parametrize("name", odd_files())
def test_odd_files_are_read_or_refused_clearly(shared: Path, name: str) -> None:
    with (shared / "audio-odd" / name).open("rb") as file:
        if name in READABLE_ODD:
            assert decode(file).duration == pytest.approx(READABLE_ODD[name], abs=0.001)
            return
        with pytest.raises(RequestError) as caught:
            decode(file)
    expected = UnreadableAudio if any(part in name for part in BROKEN_ODD) else AudioTooShort
    assert isinstance(caught.value, expected) and caught.value.status == 400 and caught.value.param == "file"


@pytest.mark.parametrize(
    ("format", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 16_000),
        ("WAVEX", "FLOAT", 48_000),
        ("RF64", "PCM_24", 44_100),
        ("FLAC", "PCM_16", 44_100),
        ("OGG", "VORBIS", 44_100),
        ("OGG", "OPUS", 48_000),
        ("MP3", None, 44_100),
    ],
)
def test_every_truncation_is_read_as_far_as_it_goes_or_refused(format: str, subtype: str | None, rate: int) -> None:
    whole = encoded(speechlike(rate, 1, 4), rate, format, subtype)
    durations = [decodes_or_is_refused(whole[:cut]) for cut in cuts(len(whole), 200)]
    assert durations[0] is None
    assert durations[-1] is not None and durations[-1] > 2
    found = [duration for duration in durations if duration is not None]
    assert found == sorted(found)


def test_a_real_wav_cut_anywhere(shared: Path) -> None:
    whole = (shared / "speech/jfk.wav").read_bytes()
    data_at = whole.index(b"data") + 8
    for cut in cuts(len(whole), 120):
        duration = decodes_or_is_refused(whole[:cut])
        heard = (cut - data_at) // 2 / SAMPLE_RATE
        assert duration == (heard if heard >= 0.1 else None)


def test_flipped_bytes_are_read_or_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """And libsndfile's own libraries say nothing on stderr about it."""
    chance = np.random.default_rng(0)
    kinds = (("WAV", "IMA_ADPCM"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None))
    for format, subtype in kinds:
        whole = encoded(speechlike(44_100, 2, 0.5), 44_100, format, subtype)
        for turn in range(40):
            damaged = bytearray(whole)
            for at in chance.integers(0, len(whole) if turn % 2 else 100, 5):
                damaged[at] = chance.integers(0, 256)
            decodes_or_is_refused(bytes(damaged))
    assert capfd.readouterr() == ("", "")


def wav_header(rate: int, channels: int, bits: int = 16, data_bytes: int = 0xFFFF_FFFF) -> bytes:
    frame = channels * bits // 8
    fields = struct.pack("<HHIIHH", 1, channels, rate, rate * frame & 0xFFFF_FFFF, frame, bits)
    return (
        b"RIFF"
        + struct.pack("<I", data_bytes)
        + b"WAVEfmt \x10\0\0\0"
        + fields
        + b"data"
        + struct.pack("<I", data_bytes)
    )


def test_a_length_that_a_header_claims_does_not_count() -> None:
    second = struct.pack("<h", 1000) * SAMPLE_RATE
    assert decode(io.BytesIO(wav_header(SAMPLE_RATE, 1) + second)).duration == 1.0
    flac = bytearray(encoded(speechlike(SAMPLE_RATE, 1), SAMPLE_RATE, "FLAC"))
    flac[21] |= 0x0F  # with the next four bytes: 2³⁶ − 1 samples
    flac[22:26] = b"\xff" * 4
    assert decode(io.BytesIO(bytes(flac))).duration == 1.0


@pytest.mark.parametrize(("rate", "channels"), [(655_350, 8), (1, 1), (999, 1), (0, 1), (2**31 - 1, 1), (16_000, 255)])
def test_forged_rates_and_channels_are_refused(rate: int, channels: int) -> None:
    with pytest.raises(UnreadableAudio, match="WAV"):
        decode(io.BytesIO(wav_header(rate, channels) + bytes(1 << 16)))


def test_more_seconds_than_allowed_are_refused_before_they_are_kept() -> None:
    hour = encoded(np.zeros((8000 * 3600, 1), np.int16), 8000, "FLAC", "PCM_16")
    assert len(hour) < 200_000  # a small file: the limit is on what it decodes to
    with pytest.raises(AudioTooLong, match="limit of 60 s") as caught:
        decode(io.BytesIO(hour), max_seconds=60)
    assert (caught.value.status, caught.value.param, caught.value.code) == (413, "file", "audio_too_long")
    assert decode(io.BytesIO(hour), max_seconds=3600).duration == 3600


def test_many_channels_at_a_high_rate_shorten_what_is_allowed() -> None:
    rate, channels = 192_000, 8
    file = encoded(np.zeros((rate * 2, channels), np.int16), rate, "FLAC", "PCM_16")
    with pytest.raises(AudioTooLong):
        decode(io.BytesIO(file), max_seconds=rate * channels / MAX_VALUES_PER_SECOND)
    assert decode(io.BytesIO(file), max_seconds=2 * rate * channels / MAX_VALUES_PER_SECOND).duration == 2


def test_a_tenth_of_a_second_is_enough() -> None:
    assert decode(io.BytesIO(encoded(speechlike(16_000, 1, 0.1), 16_000, "WAV"))).duration == pytest.approx(0.1)
    for seconds in (0.099, 0.09996):
        with pytest.raises(AudioTooShort, match=r"0\.099 s long; it must be at least 0\.1 s"):
            decode(io.BytesIO(encoded(speechlike(44_100, 1, seconds), 44_100, "WAV")))


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"hello, this is text", b"\x89PNG\r\n\x1a\n" + bytes(99), b"ID3", os.urandom(5000)]
)
def test_what_is_no_audio_is_told_the_formats(content: bytes) -> None:
    with pytest.raises(UnreadableAudio, match="Formats read: WAV, FLAC, OGG") as caught:
        decode(io.BytesIO(content))
    assert (caught.value.status, caught.value.param) == (400, "file")


def test_tags_without_end_are_no_endless_work() -> None:
    with pytest.raises(UnreadableAudio):
        decode(io.BytesIO(b"ID3\x04\0\0\0\0\0\0" * 200_000))


def test_a_failing_disk_is_not_the_users_mistake(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        decode(FailingDisk(encoded(speechlike(16_000, 1, 5), 16_000, "WAV")))
    closed = io.BytesIO(encoded(speechlike(8000, 1, KEPT_SECONDS + 1), 8000, "WAV", "PCM_U8"))
    audio = decode(closed)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        samples(audio)
    assert capfd.readouterr() == ("", "")
