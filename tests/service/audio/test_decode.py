"""Decoding: every readable format gives the same sound, in little memory."""

import io
import os
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from service.audio.decode import KEPT_SECONDS, SAMPLE_RATE, decode
from tests.conftest import ROOT
from tests.support.sounds import encoded, samples, similarity, speechlike


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
def test_invalid_samples_are_silence(subtype: str) -> None:
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


def test_waiting_audio_holds_little_memory() -> None:
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
    """A variable-rate one without its Xing header, two joined, one cut."""
    sound = speechlike(rate, channels, 10)
    sound[: rate * 5] *= 1e-4  # few bits at first, many later
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
    assert audio.duration == pytest.approx(7, abs=0.01)
    sound = samples(audio)
    assert similarity(speechlike(SAMPLE_RATE, 1, 3)[:, 0], sound[2 * SAMPLE_RATE : 5 * SAMPLE_RATE]) > 0.995
    np.testing.assert_array_equal(sound[: 2 * SAMPLE_RATE], sound[-2 * SAMPLE_RATE :])
    assert decode(io.BytesIO(one + other[:30])).duration == pytest.approx(2)


def test_an_mp3_with_a_large_picture_in_its_tag() -> None:
    tag = b"ID3\x04\0\0\x01\0\0\0" + os.urandom(1 << 21)  # 2 MiB, in 4 × 7 bits
    assert decode(io.BytesIO(tag + encoded(speechlike(44_100, 1), 44_100, "MP3"))).duration == pytest.approx(1, abs=0.1)


def test_many_at_once() -> None:
    """Decoding is safe in threads."""
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
from service.audio.decode import decode
from service.audio.log_mel import log_mel_frames
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
