"""Raw PCM in pieces: every width, rate and number of channels, split anywhere."""

import io

import numpy as np
import pytest
import soundfile

from service.audio.decode import decode
from service.audio.pcm import PcmDecoder, PcmFormat
from tests.support.serving import tone

SUBTYPES = {1: "PCM_U8", 2: "PCM_16", 3: "PCM_24", 4: "PCM_32"}


def raw(rate: int, width: int, channels: int) -> tuple[bytes, bytes]:
    """Half a second of a tone as bare PCM, and the same as a WAV file."""
    sound = np.sin(np.arange(rate // 2) * (2 * np.pi * 440 / rate)) * 0.3
    frames = np.stack([sound * (0.5 + 0.1 * channel) for channel in range(channels)], axis=1)
    files = []
    for kind in ("RAW", "WAV"):
        buffer = io.BytesIO()
        soundfile.write(buffer, frames, rate, format=kind, subtype=SUBTYPES[width], endian="LITTLE")
        files.append(buffer.getvalue())
    return files[0], files[1]


@pytest.mark.parametrize("width", SUBTYPES)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (8_000, 1), (22_050, 2), (44_100, 3), (48_000, 2)])
def test_it_sounds_as_the_same_file_does(rate: int, width: int, channels: int) -> None:
    pcm, wav = raw(rate, width, channels)
    decoder, format = PcmDecoder(), PcmFormat(rate, width, channels)
    heard = np.concatenate([decoder(format, pcm), decoder.rest()])
    (expected,) = decode(io.BytesIO(wav)).blocks()
    assert heard.dtype == np.float32 and heard.shape == expected.shape
    assert np.abs(heard - expected).max() < 1e-5


@pytest.mark.parametrize("size", [1, 7, 640, 4097])
def test_pieces_may_end_inside_a_sample(size: int) -> None:
    pcm, _ = raw(24_000, 3, 2)
    format, whole, pieces = PcmFormat(24_000, 3, 2), PcmDecoder(), PcmDecoder()
    expected = np.concatenate([whole(format, pcm), whole.rest()])
    blocks = [pieces(format, pcm[at : at + size]) for at in range(0, len(pcm), size)]
    heard = np.concatenate([*blocks, pieces.rest()])
    assert heard.shape == expected.shape and np.abs(heard - expected).max() < 1e-6


def test_the_format_may_change() -> None:
    decoder, parts = PcmDecoder(), []
    for rate in (16_000, 48_000, 16_000):
        parts.append(decoder(PcmFormat(rate), raw(rate, 2, 1)[0]))
    assert abs(sum(map(len, parts)) + len(decoder.rest()) - 24_000) <= 1


def test_the_result_may_have_another_rate() -> None:
    decoder = PcmDecoder(24_000)
    pcm = (tone(1.0) * 32767).astype("<i2").tobytes()
    heard = np.concatenate([decoder(PcmFormat(), pcm), decoder.rest()])
    spectrum = np.abs(np.fft.rfft(heard))
    assert len(heard) == 24_000 and int(spectrum.argmax()) == 440


@pytest.mark.parametrize(
    "values", [(0, 2, 1), (999, 2, 1), (10**9, 2, 1), (16_000, 0, 1), (16_000, 5, 1), (8_000, 2, 0), (8_000, 2, 33)]
)
def test_anything_else_is_rejected(values: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        PcmFormat(*values)
