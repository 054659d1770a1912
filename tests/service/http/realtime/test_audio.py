"""A session's audio: G.711 as libsndfile decodes it, PCM at any rate, split anywhere."""

import io

import numpy as np
import pytest
import soundfile

from service.http.realtime.audio import ALAW, PCM, ULAW, Decoder, Format
from tests.support.sounds import speechlike


def decoded(decoder: Decoder, data: bytes, size: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    blocks = [block for first in range(0, len(data), size) for block in decoder.blocks(data[first : first + size])]
    return np.concatenate([*blocks, decoder.rest()])


@pytest.mark.parametrize(("kind", "subtype"), [(ULAW, "ULAW"), (ALAW, "ALAW")])
def test_every_byte_of_g711_is_decoded_as_libsndfile_does(kind: str, subtype: str) -> None:
    every = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(every), dtype="float32", format="RAW", subtype=subtype, samplerate=8000, channels=1
    )
    decoder = Decoder(Format(kind, 8000))
    assert np.array_equal(decoder._samples(every), expected)


@pytest.mark.parametrize(
    ("rate", "size"), [(8000, 1), *((rate, size) for rate in (8000, 16_000, 24_000, 48_000) for size in (999, 48_000))]
)
def test_pcm_is_the_same_signal_however_it_is_split(rate: int, size: int) -> None:
    data = (np.clip(speechlike(rate, 1), -1, 1) * 32767).astype("<i2").tobytes()
    whole = decoded(Decoder(Format(PCM, rate)), data, len(data))
    split = decoded(Decoder(Format(PCM, rate)), data, size)
    assert whole.shape == split.shape and abs(len(whole) - len(data) // 2 * 16_000 // rate) <= 1
    assert np.abs(whole - split).max() < 1e-5
    assert np.sqrt(np.mean(whole**2)) > 0.01


def test_exactly_a_tenth_of_a_second_stays_one() -> None:
    decoder = Decoder()
    assert len(decoded(decoder, bytes(4800), 960)) == 1600


def test_a_signal_after_rest_begins_anew_and_a_format_may_change() -> None:
    data = (np.clip(speechlike(24_000, 1), -1, 1) * 32767).astype("<i2").tobytes()
    decoder = Decoder()
    first = decoded(decoder, data, 4801)
    assert np.array_equal(decoded(decoder, data, 4801), first)
    list(decoder.blocks(data[:1]))  # half a sample
    decoder.set_format(Format(ULAW, 8000))
    assert len(decoded(decoder, b"\xff" * 8000, 100)) == 16_000


def test_a_long_piece_comes_in_blocks_of_a_second() -> None:
    blocks = list(Decoder().blocks(bytes(24_000 * 2 * 5)))
    assert len(blocks) == 5 and max(map(len, blocks)) <= 16_400  # in its filter's steps
