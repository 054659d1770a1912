"""Decoding: every readable format gives the same sound; whatever else comes gives one clear error, and little work."""

import io
import os
import struct
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from service.audio import KEPT_SECONDS, MAX_VALUES_PER_SECOND, SAMPLE_RATE, Audio, decode
from service.errors import AudioTooLong, AudioTooShort, RequestError, UnreadableAudio
from tests.conftest import ROOT, shared_path

Floats = NDArray[np.float32]


def speechlike(rate: int, channels: int, seconds: float = 1.0) -> NDArray[np.float64]:
    """(n, channels) chirp from 200 Hz to 1.2 kHz, the same in every channel."""
    time = np.arange(round(rate * seconds)) / rate
    chirp = 0.5 * np.sin(2 * np.pi * (200 + 500 * time / seconds) * time)
    return np.repeat(chirp[:, None], channels, axis=1)


def encoded(sound: NDArray[Any], rate: int, format: str, subtype: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, sound.shape[1], format=format, subtype=subtype, **options) as out:
        for start in range(0, sound.shape[0], rate):  # libsndfile's encoders overflow their stack on long writes
            out.write(sound[start : start + rate])
    return file.getvalue()


def samples(audio: Audio) -> Floats:
    return np.concatenate(list(audio.blocks()))


def similarity(one: NDArray[Any], other: NDArray[Any], within: int = 1200) -> float:
    """The best correlation of two sounds over delays of up to `within` samples either way."""
    n = min(one.shape[0], other.shape[0])
    size = 1 << (2 * n - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(one[:n], size).conj() * np.fft.rfft(other[:n], size), size)
    near = np.concatenate([product[: within + 1], product[-within:]])
    return float(near.max() / (np.linalg.norm(one[:n]) * np.linalg.norm(other[:n])))


@pytest.mark.parametrize(
    ("format", "subtype", "rate", "channels", "options"),
    [
        ("WAV", "PCM_U8", 16_000, 1, {}),
        ("WAV", "PCM_16", 16_000, 1, {}),
        ("WAV", "PCM_16", 8_000, 2, {}),
        ("WAV", "PCM_24", 44_100, 2, {}),
        ("WAV", "PCM_32", 48_000, 1, {}),
        ("WAV", "FLOAT", 22_050, 3, {}),
        ("WAV", "DOUBLE", 96_000, 1, {}),
        ("WAV", "ULAW", 8_000, 1, {}),
        ("WAV", "ALAW", 8_000, 1, {}),
        ("WAV", "IMA_ADPCM", 16_000, 1, {}),
        ("WAV", "MS_ADPCM", 44_100, 2, {}),
        ("WAV", "PCM_24", 192_000, 6, {}),
        ("WAV", "PCM_16", 11_025, 2, {"endian": "BIG"}),  # RIFX
        ("WAVEX", "PCM_24", 48_000, 4, {}),
        ("RF64", "PCM_16", 44_100, 2, {}),
        ("FLAC", "PCM_16", 44_100, 2, {}),
        ("FLAC", "PCM_24", 16_000, 1, {}),
        ("OGG", "VORBIS", 44_100, 2, {}),
        ("OGG", "OPUS", 48_000, 1, {}),
        ("MP3", None, 44_100, 2, {}),
        ("MP3", None, 16_000, 1, {}),
        ("AIFF", "PCM_16", 44_100, 1, {}),
        ("AU", "ULAW", 8_000, 1, {}),
        ("CAF", "PCM_16", 44_100, 2, {}),
    ],
)
def test_every_format_gives_the_same_sound(
    format: str, subtype: str | None, rate: int, channels: int, options: dict[str, str]
) -> None:
    audio = decode(io.BytesIO(encoded(speechlike(rate, channels), rate, format, subtype, **options)))
    sound = samples(audio)
    assert sound.dtype == np.float32 and sound.ndim == 1
    assert audio.duration == pytest.approx(1.0, abs=0.04)  # ADPCM fills its last block
    assert sound.shape[0] == pytest.approx(audio.duration * SAMPLE_RATE, abs=1)
    assert similarity(speechlike(SAMPLE_RATE, 1)[:, 0], sound) > 0.995


@pytest.mark.parametrize(("name", "likeness"), [("jfk.flac", 0.9999), ("jfk.mp3", 0.999)])
def test_the_same_speech_in_other_formats(shared: Path, name: str, likeness: float) -> None:
    with (shared / "speech/jfk.wav").open("rb") as wav, (shared / "speech" / name).open("rb") as other:
        reference, audio = decode(wav), decode(other)
    assert reference.duration == audio.duration == 11.0
    assert similarity(samples(reference), samples(audio)) > likeness


def test_a_wav_at_16_khz_comes_unchanged(shared: Path) -> None:
    expected, _ = soundfile.read(shared / "speech/jfk.wav", dtype="float32")
    with (shared / "speech/jfk.wav").open("rb") as file:
        np.testing.assert_array_equal(samples(decode(file)), expected)


def test_channels_are_averaged() -> None:
    left_only = speechlike(SAMPLE_RATE, 2)
    left_only[:, 1] = 0
    sound = samples(decode(io.BytesIO(encoded(left_only, SAMPLE_RATE, "WAV", "FLOAT"))))
    np.testing.assert_allclose(sound, left_only[:, 0] / 2, atol=1e-6)


def test_nothing_above_8_khz_folds_down() -> None:
    tone = np.sin(2 * np.pi * 11_000 * np.arange(44_100) / 44_100)[:, None]
    assert np.abs(samples(decode(io.BytesIO(encoded(tone, 44_100, "WAV", "FLOAT"))))[200:-200]).max() < 1e-4


def test_float_samples_over_full_scale_are_kept() -> None:
    loud = speechlike(SAMPLE_RATE, 1) * 8
    sound = samples(decode(io.BytesIO(encoded(loud, SAMPLE_RATE, "WAV", "FLOAT"))))
    np.testing.assert_allclose(sound, loud[:, 0], rtol=1e-6)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_that_are_no_sound_are_silence(subtype: str) -> None:
    broken = speechlike(SAMPLE_RATE, 2)
    broken[[10, 20, 30, 40]] = np.array([np.nan, np.inf, -np.inf, 1e30])[:, None]
    broken[50, 0] = np.nan
    expected = np.where(np.isfinite(broken) & (broken < 1e9), broken, 0).mean(axis=1)
    sound = samples(decode(io.BytesIO(encoded(broken, SAMPLE_RATE, "WAV", subtype))))
    np.testing.assert_allclose(sound, expected, atol=1e-6)


def test_blocks_can_be_read_again_long_or_short() -> None:
    for seconds in (1, KEPT_SECONDS + 1):
        file = io.BytesIO(encoded(speechlike(8000, 1, seconds), 8000, "WAV", "PCM_U8"))
        audio = decode(file)
        first = samples(audio)
        assert audio.duration == seconds and first.shape == (seconds * SAMPLE_RATE,)
        np.testing.assert_array_equal(samples(audio), first)


def test_what_waits_for_its_turn_holds_little_memory() -> None:
    file = io.BytesIO(encoded(speechlike(8000, 1, 250), 8000, "WAV", "PCM_U8"))
    tracemalloc.start()
    audio = decode(file)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert audio.duration == 250 and held < 4_000_000  # bytes; decoded it would be 16 MB


def test_long_audio_comes_in_small_blocks() -> None:
    audio = decode(io.BytesIO(encoded(speechlike(8000, 1, KEPT_SECONDS + 1), 8000, "FLAC", "PCM_16")))
    assert max(block.nbytes for block in audio.blocks()) < 1 << 20


def test_an_upload_spooled_to_disk_is_read_from_its_start() -> None:
    with tempfile.SpooledTemporaryFile(max_size=1000) as upload:
        upload.write(encoded(speechlike(16_000, 1), 16_000, "WAV", "PCM_16"))
        assert decode(upload).duration == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (48_000, 1), (22_050, 2), (8_000, 1)])
def test_mp3s_are_read_to_their_end_whatever_their_header_says(mode: str, rate: int, channels: int) -> None:
    """A variable-rate one without its Xing header, two joined, one cut: libsndfile alone would stop early."""
    sound = speechlike(rate, channels, 10)
    sound[: rate * 5] *= 1e-4  # few bits first, many later
    mp3 = encoded(sound, rate, "MP3", bitrate_mode=mode, compression_level=0.5)
    header = mp3.index(mp3[:2], 4)  # the Xing frame's length
    bare, tag = mp3[header:], b"ID3\x04\0\0\0\0\x01\0" + bytes(128)
    for file, seconds in ((mp3, 10), (bare, 10), (tag + bare, 10), (mp3 + mp3, 20), (bare + mp3, 20), (tag + mp3, 10)):
        assert decode(io.BytesIO(file)).duration == pytest.approx(seconds, abs=0.5)
    assert 2 < decode(io.BytesIO(bare[: len(bare) // 2])).duration < 9.9


@pytest.mark.parametrize(("subtype", "rate"), [("VORBIS", 44_100), ("OPUS", 48_000)])
def test_chained_oggs_are_read_to_their_end(subtype: str, rate: int) -> None:
    one = encoded(speechlike(rate, 2, 2), rate, "OGG", subtype)
    other = encoded(speechlike(16_000, 1, 3), 16_000, "OGG", "VORBIS")
    audio = decode(io.BytesIO(one + other + one))
    assert audio.duration == pytest.approx(7)
    sound = samples(audio)
    assert similarity(speechlike(SAMPLE_RATE, 1, 3)[:, 0], sound[2 * SAMPLE_RATE : 5 * SAMPLE_RATE]) > 0.995
    np.testing.assert_array_equal(sound[: 2 * SAMPLE_RATE], sound[5 * SAMPLE_RATE :])
    assert decode(io.BytesIO(one + other[:30])).duration == pytest.approx(2)


def test_an_mp3_with_a_large_picture_in_its_tag() -> None:
    tag = b"ID3\x04\0\0\x01\0\0\0" + os.urandom(1 << 21)  # 2 MiB, in 4 × 7 bits
    assert decode(io.BytesIO(tag + encoded(speechlike(44_100, 1), 44_100, "MP3"))).duration == pytest.approx(1, abs=0.1)


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
BROKEN_ODD = ("-awful", "-bad", "-evil", "-no-data", "incomplete-chunk", "36bit", "45bit", "53bit", "64bit.wav")


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


def cuts(size: int, dense: int) -> Iterator[int]:
    """Every length up to `dense`, then some up to the whole."""
    yield from range(min(dense, size))
    yield from range(dense, size, max(1, (size - dense) // 25))


def decodes_or_is_refused(data: bytes) -> float | None:
    """Seconds, or None when refused as the user's mistake; anything else raises."""
    try:
        audio = decode(io.BytesIO(data), max_seconds=600)
        sound = samples(audio)
    except RequestError as error:
        assert 400 <= error.status < 500 and error.param == "file" and len(str(error)) < 400
        return None
    assert np.isfinite(sound).all()
    return audio.duration


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


def test_python_still_writes_to_stderr_while_an_mp3_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    audio = decode(io.BytesIO(encoded(speechlike(8000, 1, KEPT_SECONDS + 1), 8000, "MP3")))
    blocks = audio.blocks()
    next(blocks)
    sys.stderr.write("a log line")
    sys.stderr.flush()
    del blocks
    assert capfd.readouterr().err == "a log line"


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
    with pytest.raises(UnreadableAudio, match="WAV file"):
        decode(io.BytesIO(wav_header(rate, channels) + bytes(1 << 16)))


def test_more_seconds_than_allowed_are_refused_before_they_are_kept() -> None:
    hour = encoded(np.zeros((8000 * 3600, 1), np.int16), 8000, "FLAC", "PCM_16")
    assert len(hour) < 200_000  # a small file: the limit is on what it decodes to
    with pytest.raises(AudioTooLong, match="longer than the 60 s accepted") as caught:
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
    with pytest.raises(AudioTooShort, match=r"0\.099 s long; at least 0\.1 s"):
        decode(io.BytesIO(encoded(speechlike(16_000, 1, 0.099), 16_000, "WAV")))


@pytest.mark.parametrize(
    ("start", "named"),
    [
        (b"\0\0\0\x20ftypM4A ", "MP4/M4A"),
        (b"\0\0\0\x20ftypisom", "MP4/M4A"),
        (b"\x1aE\xdf\xa3\x01\0\0\0", "WebM/Matroska"),
        (b"\xff\xf1\x50\x80", "AAC"),
        (b"ID3\x04\0\0\0\0\0\x01\0\xff\xf9\x50\x80", "AAC"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA/ASF"),
    ],
)
def test_formats_of_the_extra_are_named(start: bytes, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    with pytest.raises(UnreadableAudio) as caught:
        decode(io.BytesIO(start + bytes(4096)))
    message = str(caught.value)
    assert (
        message.startswith(named)
        and "pip install 'wisp[av]'" in message
        and "WAV, FLAC, OGG (Vorbis, Opus), MP3" in message
    )


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"hello, this is text", b"\x89PNG\r\n\x1a\n" + bytes(99), b"ID3", os.urandom(5000)]
)
def test_what_is_no_audio_is_told_the_formats(content: bytes) -> None:
    with pytest.raises(UnreadableAudio, match="Formats read: WAV, FLAC") as caught:
        decode(io.BytesIO(content))
    assert (caught.value.status, caught.value.param) == (400, "file")


def test_tags_without_end_are_no_endless_work() -> None:
    with pytest.raises(UnreadableAudio):
        decode(io.BytesIO(b"ID3\x04\0\0\0\0\0\0" * 200_000))


class FailingDisk(io.BytesIO):
    """A file that cannot be read behind its first half."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > len(self.getbuffer()) // 2:
            raise OSError(5, "Input/output error")
        return super().read(size)


def test_a_failing_disk_is_not_the_users_mistake(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        decode(FailingDisk(encoded(speechlike(16_000, 1, 5), 16_000, "WAV")))
    closed = io.BytesIO(encoded(speechlike(8000, 1, KEPT_SECONDS + 1), 8000, "WAV", "PCM_U8"))
    audio = decode(closed)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        samples(audio)
    assert capfd.readouterr() == ("", "")


def test_many_at_once() -> None:
    """The MP3 decoder's silencing, and everything else, is safe in threads."""
    files = [encoded(speechlike(rate, 1), rate, "MP3") for rate in (16_000, 44_100)]
    expected = [samples(decode(io.BytesIO(file))) for file in files]
    failures: list[BaseException] = []

    def work(turn: int) -> None:
        try:
            for _ in range(5):
                np.testing.assert_array_equal(samples(decode(io.BytesIO(files[turn]))), expected[turn])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(turn % 2,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


MEMORY_PROBE = """
import resource, sys
from service.audio import decode
from service.features import log_mel_frames
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
with open(sys.argv[1], "rb") as file:
    audio = decode(file)
    frames = sum(block.shape[0] for block in log_mel_frames(audio.blocks, 80))
print(peak(), frames, audio.duration)
"""


def test_long_audio_takes_no_more_memory_than_short(tmp_path: Path) -> None:
    peaks = []
    for minutes in (5, 15):
        with soundfile.SoundFile(tmp_path / "long.wav", "w", 8000, 1, "PCM_U8") as out:
            for minute in range(minutes):
                out.write(speechlike(8000, 1, 60) * (minute + 1) / minutes)
        command = [sys.executable, "-c", MEMORY_PROBE, str(tmp_path / "long.wav")]
        answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
        assert int(answer[1]) == minutes * 6000 and float(answer[2]) == minutes * 60
        peaks.append(int(answer[0]))
    assert peaks[1] < peaks[0] + 20  # MiB
