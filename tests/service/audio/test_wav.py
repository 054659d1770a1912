"""Plain WAV files whose headers are wrong, old or unfinished."""

import io
import logging
import struct

import numpy as np
import pytest

from service.audio.decode import RATES, SAMPLE_RATE, decode
from service.audio.wav import MAX_CHUNKS, open_wav
from tests.support.sounds import encoded, samples, speechlike

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
