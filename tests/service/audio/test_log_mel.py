"""Log-mel features: openai/whisper's values, in whatever pieces the samples come."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from service.audio.log_mel import BLOCK_FRAMES, HOP_LENGTH, N_SAMPLES, log_mel_frames, log_mel_spectrogram, mel_filters

Floats = NDArray[np.float32]


def noise(n_samples: int) -> Floats:
    return (np.random.default_rng(0).standard_normal(n_samples) * 0.1).astype(np.float32)


def pieces(samples: Floats, sizes: list[int]) -> Iterator[Floats]:
    """The samples in pieces of these sizes, in turns."""
    start = turn = 0
    while start < samples.shape[0]:
        yield samples[start : start + sizes[turn % len(sizes)]]
        start += sizes[turn % len(sizes)]
        turn += 1


def streamed(samples: Floats, sizes: list[int], **options: int) -> Floats:
    frames = list(log_mel_frames(lambda: pieces(samples, sizes), 80, **options))
    assert all(block.dtype == np.float32 and block.flags.c_contiguous and block.shape[1] == 80 for block in frames)
    return np.concatenate([np.empty((0, 80), np.float32), *frames])


@pytest.mark.parametrize("name", ["jfk", "librispeech"])
def test_equal_to_openai_whisper(shared: Path, name: str) -> None:
    expected = np.load(shared / "expected" / f"features-{name}.npz")
    clip, rate = soundfile.read(shared / "speech" / str(expected["clip"]), dtype="float32")
    assert rate == 16_000
    log_mel = log_mel_spectrogram(np.pad(clip, (0, N_SAMPLES - clip.shape[0])), 80)
    assert log_mel.dtype == np.float32 and log_mel.flags.c_contiguous
    np.testing.assert_allclose(log_mel, expected["log_mel"], atol=1e-4)


def test_silence_is_one_floor() -> None:
    np.testing.assert_allclose(log_mel_spectrogram(np.zeros(16_000, np.float32), 80), -1.5, atol=1e-6)


def test_a_tone_is_loudest_in_its_own_band() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    # On Slaney's scale the bands 25 and 26 of 80, counted from 0, have their peaks at 968 and 1006 Hz.
    assert set(log_mel_spectrogram(tone, 80)[:, 5:-5].argmax(axis=0)) == {26}


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filters_have_the_area_of_slaneys(n_mels: int) -> None:
    filters = mel_filters(n_mels)
    assert filters.shape == (n_mels, 201) and filters.min() == 0
    # A triangle of height 2 / width has area 1; sampled every 40 Hz, the wide ones near the top come close to it.
    np.testing.assert_allclose(filters[-10:].sum(axis=1) * 40, 1, atol=0.02)


def test_too_little_to_mirror_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 200 samples"):
        log_mel_spectrogram(noise(200), 80)


LENGTHS = [0, 1, 159, 160, 200, 201, 360, 1000, 16_000, BLOCK_FRAMES * HOP_LENGTH + 400, 150_001]


@pytest.mark.parametrize("n_samples", LENGTHS)
@pytest.mark.parametrize("sizes", [[200_000], [1, 7, 4000], [BLOCK_FRAMES * HOP_LENGTH + 399, 1]], ids=str)
def test_a_stream_equals_one_piece_followed_by_silence(n_samples: int, sizes: list[int]) -> None:
    samples = noise(n_samples)
    # 30 s of silence or one, a frame of the content sees the first 12 ms of it.
    whole = log_mel_spectrogram(np.pad(samples, (0, 16_000)), 80)[:, : n_samples // HOP_LENGTH]
    np.testing.assert_allclose(streamed(samples, sizes), whole.T, atol=1e-6)


def test_long_audio_read_twice_gives_the_same() -> None:
    samples = noise(200_000)
    samples[150_000:] *= 50  # the loudest value, which all frames refer to, comes last
    np.testing.assert_array_equal(streamed(samples, [9000], kept_frames=100), streamed(samples, [9000]))


def test_the_silence_behind_the_content_counts_for_the_loudest_value() -> None:
    # A click in the last samples is only heard by the frames past the content.
    samples = noise(1600 + 159) * 1e-4
    samples[-2:] = 1
    whole = log_mel_spectrogram(np.pad(samples, (0, N_SAMPLES)), 80)
    np.testing.assert_allclose(streamed(samples, [500]), whole[:, :10].T, atol=1e-6)


@pytest.mark.parametrize("volume", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("kept_frames", [10, 1000])
def test_silence_is_what_the_reference_has_behind_the_recording(volume: float, kept_frames: int) -> None:
    samples = noise(50_000) * np.float32(volume)
    behind = log_mel_spectrogram(np.pad(samples, (0, N_SAMPLES)), 80)[:, -1]
    log_mel = log_mel_frames(lambda: [samples], 80, kept_frames=kept_frames)
    np.testing.assert_allclose(behind, log_mel.silence, atol=1e-6)
    assert sum(block.shape[0] for block in log_mel) == len(samples) // HOP_LENGTH
