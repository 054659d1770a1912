"""Channels are mixed to one without losing any speech, and without clicks."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray

from service.audio.decode import SAMPLE_RATE, decode
from service.audio.mixing import WINDOW_VALUES, Mixer
from tests.support.sounds import encoded, samples, similarity, speechlike

RATE = 16_000


def mixed(sound: NDArray[np.float32], block: int = 1000) -> NDArray[np.float32]:
    mixer = Mixer(RATE, sound.shape[1])
    parts = [part for start in range(0, len(sound), block) for part in mixer(sound[start : start + block])]
    return np.concatenate([*parts, *mixer.rest()])


def stereo(left: float, right: float, seconds: float = 6) -> NDArray[np.float32]:
    return (speechlike(RATE, 2, seconds) * [left, right]).astype(np.float32)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("right", [-1.0, -0.95])
def test_channels_that_cancel_are_heard(format: str, right: float) -> None:
    audio = decode(io.BytesIO(encoded(stereo(1, right), RATE, format)))
    sound = samples(audio)
    assert similarity(speechlike(SAMPLE_RATE, 1, 6)[:, 0], sound) > 0.99
    assert np.abs(sound).max() > 0.4


@pytest.mark.parametrize(("left", "right"), [(1, 1), (1, 0), (0, 1), (1, 0.5), (1, -0.5), (0, 0)])
def test_others_are_averaged(left: float, right: float) -> None:
    sound = stereo(left, right)
    np.testing.assert_allclose(mixed(sound), sound.mean(axis=1), atol=1e-6)


def test_one_of_many_channels_is_averaged() -> None:
    sound = np.zeros((RATE, 8), np.float32)
    sound[:, 3] = speechlike(RATE, 1)[:, 0]
    np.testing.assert_allclose(mixed(sound), sound.mean(axis=1), atol=1e-6)


def test_where_channels_begin_to_cancel_there_is_no_click() -> None:
    """The louder one is twice as loud as their mean; the step between two samples stays that of the sound."""
    sound = stereo(1, 1, 12)
    sound[len(sound) // 2 :, 1] *= -1
    heard = mixed(sound)
    assert heard.shape == (len(sound),)
    assert np.abs(np.diff(heard)).max() < 1.2 * np.abs(np.diff(sound[:, 0])).max()
    assert similarity(sound[:, 0], heard) > 0.9


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_the_mix_does_not_depend_on_the_blocks(channels: int) -> None:
    noise = np.random.default_rng(0).standard_normal((3 * WINDOW_VALUES // channels + 17, channels)).astype(np.float32)
    noise[: WINDOW_VALUES // channels, 0] = -noise[: WINDOW_VALUES // channels, 1:].sum(axis=1)
    whole = mixed(noise, block=len(noise))
    for block in (1, 777, 50_000):
        np.testing.assert_array_equal(mixed(noise, block), whole)
