"""Raw telephone sound: its name or its media type tells its format, unless the content is a file of another kind."""

import io
from typing import Any

import av
import numpy as np
import pytest

from service.audio.decode import SAMPLE_RATE, decode
from service.audio.headerless import header_for, is_raw
from tests.support.av_sounds import encoded as encoded_by_av
from tests.support.sounds import encoded, samples, similarity, speechlike


def raw(codec: str, rate: int, bits: int = 0) -> bytes:
    """The chirp of speechlike(), two seconds, as the codec's bytes alone."""
    coder: Any = av.AudioCodecContext.create(codec, "w")
    coder.sample_rate, coder.layout, coder.format = rate, "mono", "s16"
    if bits:
        coder.options = {"code_size": str(bits)}
    sound = (speechlike(rate, 1, 2)[:, 0] * 32767).astype(np.int16)
    packets = []
    for start in range(0, len(sound), 320):
        frame = av.AudioFrame.from_ndarray(sound[None, start : start + 320], "s16", "mono")
        frame.sample_rate, frame.pts = rate, start
        packets += coder.encode(frame)
    return b"".join(bytes(packet) for packet in (*packets, *coder.encode(None)))


@pytest.mark.parametrize(
    ("name", "media_type", "codec", "rate", "bits"),
    [
        ("call.g722", "", "g722", 16_000, 0),
        ("CALL.G722", "application/octet-stream", "g722", 16_000, 0),
        ("", "audio/G722", "g722", 16_000, 0),
        ("blob", "audio/G722; rate=8000", "g722", 16_000, 0),  # RFC 3551's clock rate, which is not the sound's
        ("call.g726", "", "g726", 8000, 4),
        ("call.g726le", "", "g726le", 8000, 4),
        ("call.g726-40", "", "g726", 8000, 5),
        ("", "audio/G726-16", "g726le", 8000, 2),
        ("", "audio/g726-24", "g726le", 8000, 3),
        ("", "audio/x-g726-32;rate=8000", "g726le", 8000, 4),
        ("", "audio/G726-40", "g726le", 8000, 5),
        ("", "audio/AAL2-G726-32", "g726", 8000, 4),
        ("call.ulaw", "", "pcm_mulaw", 8000, 0),
        ("", "audio/PCMU", "pcm_mulaw", 8000, 0),
        ("call.alaw", "", "pcm_alaw", 8000, 0),
        ("", "audio/PCMA;rate=16000", "pcm_alaw", 16_000, 0),
    ],
)
def test_a_name_or_a_type_tells_the_format(name: str, media_type: str, codec: str, rate: int, bits: int) -> None:
    content = raw(codec, rate, bits)
    assert is_raw(content[:4096])
    audio = decode(io.BytesIO(header_for(name, media_type) + content))
    assert audio.duration == pytest.approx(2, abs=0.02)
    assert similarity(speechlike(SAMPLE_RATE, 1, 2)[:, 0], samples(audio)) > (0.9 if bits == 2 else 0.97)


@pytest.mark.parametrize("name", ["call.wav", "g722", "call.g722.wav", "call.g729", "call.g726x", ""])
@pytest.mark.parametrize("media_type", ["", "audio/wav", "audio/mpeg", "g722", "audio", "text/g722"])
def test_other_names_and_types_tell_nothing(name: str, media_type: str) -> None:
    assert header_for(name, media_type) == b""


def test_content_of_another_kind_is_known() -> None:
    sound = speechlike(SAMPLE_RATE, 1, 1)
    for content in (
        *(encoded(sound, SAMPLE_RATE, kind) for kind in ("WAV", "FLAC", "OGG", "MP3", "AU")),
        encoded_by_av("adts", "aac"),
        encoded_by_av("ipod", "aac"),
        b"ID3\x04\0\0\0\0\0\0" + bytes(100),
    ):
        assert not is_raw(content[:4096])
