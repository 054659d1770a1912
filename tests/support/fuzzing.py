"""Fuzzed requests, each generated from its number: broken audio in valid forms, and broken forms."""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from tests.support.sounds import encoded, speechlike

SECONDS = 0.4  # of sound in each file
TYPE = "multipart/form-data; boundary="
NASTY_INTS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
FIELDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("whisper-1", "synthetic", "", "gpt-5", "../../etc/passwd", "\0", "名前")),
    ("language", ("en", "", "EN-us", "de", "xx", "english", "e" * 300, "\0en")),
    ("prompt", ("", "Ask not", "\0", "\ud7ff\U0001f600", "a" * 5000, "<|endoftext|><|0.00|>", "\r\n--", "{}", "%s%n")),
    ("response_format", ("json", "text", "srt", "vtt", "verbose_json", "diarized_json", "xml", "JSON", "")),
    ("temperature", ("0", "0.5", "1", "-0", "nan", "inf", "1e999", "-1", "0x1", "½", "1_0", " 0 ", "")),
    ("timestamp_granularities[]", ("word", "segment", "both", "")),
    ("timestamp_granularities", ("word", "segment")),
    ("include[]", ("logprobs", "everything")),
    ("stream", ("true", "false", "1", "yes", "TRUE", "")),
    ("chunking_strategy", ("auto", "", '{"type":"server_vad"}', "{", "[]", "null", '{"type":1}', "[" * 5000)),
    ("chunking_strategy[type]", ("server_vad", "auto")),
    ("chunking_strategy[threshold]", ("0.5", "nan", "-1", "2")),
    ("chunking_strategy[silence_duration_ms]", ("200", "-5", "1e9", "99999999999999999999")),
    ("keywords[]", ("Wisp", "", "\0", "k" * 2000)),
    ("languages[]", ("en", "de", "xx")),
    ("known_speaker_names[]", ("me",)),
    ("unknown", ("1",)),
    ("", ("nameless",)),
    ("a\0b", ("null byte",)),
    ("file", ("text where a file should be",)),
    ("prompt[][]", ("1",)),
)

SENSIBLE_FIELDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("whisper-1", "")),
    ("language", ("en", "")),
    ("prompt", ("Ask not", "\0", "a" * 5000, "\U0001f600")),
    ("response_format", ("json", "text", "verbose_json")),
    ("temperature", ("0", "0.5", "1")),
    ("stream", ("true", "false")),
)


@dataclass(frozen=True)
class Case:
    """One request: its Content-Type and its body."""

    content_type: str
    body: bytes


@cache
def seeds() -> tuple[bytes, ...]:
    """A short valid file of every format there is an encoder for."""
    made = [
        encoded(speechlike(rate, channels, SECONDS), rate, format, subtype)
        for format, subtype, rate, channels in (
            ("WAV", "PCM_16", 16_000, 1),
            ("WAV", "FLOAT", 44_100, 2),
            ("WAV", "ULAW", 8_000, 1),
            ("WAV", "MS_ADPCM", 8_000, 1),
            ("RF64", "PCM_24", 8_000, 1),
            ("FLAC", "PCM_16", 16_000, 1),
            ("OGG", "VORBIS", 16_000, 1),
            ("OGG", "OPUS", 16_000, 1),
            ("MP3", "MPEG_LAYER_III", 16_000, 1),
            ("AIFF", "PCM_16", 8_000, 1),
            ("AU", "PCM_16", 8_000, 1),
            ("CAF", "ALAC_16", 16_000, 1),
        )
    ]
    if find_spec("av"):
        from tests.support import av_sounds

        made += [
            av_sounds.encoded(container, codec, rate, "mono", SECONDS)
            for container, codec, rate in (
                ("ipod", "aac", 16_000),
                ("mp4", "alac", 16_000),
                ("adts", "aac", 16_000),
                ("webm", "libopus", 48_000),
                ("matroska", "flac", 16_000),
                ("mpeg", "mp2", 16_000),
            )
        ]
    return tuple(made)


Mutation = Callable[[random.Random, bytearray], None]


def _place(rng: random.Random, data: bytearray) -> int:
    """A random place; every other time among the first bytes, where headers are."""
    return rng.randrange(max(1, min(len(data), 100) if rng.random() < 0.5 else len(data)))


def _flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 4, 40)) if data else 0):
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _forge_number(rng: random.Random, data: bytearray) -> None:
    """A number of two, four or eight bytes becomes an extreme one: lengths, rates, channels."""
    at = _place(rng, data)
    form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    number = rng.choice((*NASTY_INTS, rng.randrange(1 << 32))) % (1 << 8 * struct.calcsize(form))
    data[at : at + struct.calcsize(form)] = struct.pack(form, number)


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[_place(rng, data) :]


def _cut_out(rng: random.Random, data: bytearray) -> None:
    at = _place(rng, data)
    del data[at : at + rng.choice((1, 2, 7, 100, 1000))]


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = _place(rng, data)
    piece = bytes(data[at : at + rng.choice((1, 8, 64, 2000))])
    data[at:at] = piece * rng.choice((1, 1, 2, 16))


def _insert(rng: random.Random, data: bytearray) -> None:
    at = _place(rng, data)
    data[at:at] = rng.choice((rng.randbytes(rng.randrange(1, 64)), bytes(64), b"\xff" * 64, b"\0"))


def _overwrite(rng: random.Random, data: bytearray) -> None:
    at, size = _place(rng, data), rng.choice((4, 64, 512))
    data[at : at + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def _graft(rng: random.Random, data: bytearray) -> None:
    """Another file's bytes instead of the rest, or before it, or after it."""
    other, at = rng.choice(seeds()), _place(rng, data)
    match rng.randrange(3):
        case 0:
            data[at:] = other[at:]
        case 1:
            data[0:0] = other[:at]
        case _:
            data += other


def _tag(rng: random.Random, data: bytearray) -> None:
    data[0:0] = b"ID3\x04\0" + rng.randbytes(5) + bytes(rng.randrange(40))


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits, _forge_number, _forge_number, _truncate, _cut_out, _repeat, _insert, _overwrite, _graft, _tag,
)  # fmt: skip


def mutated(rng: random.Random, data: bytes, mutations: tuple[Mutation, ...] = MUTATIONS) -> bytes:
    """Apply one to four mutations."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(mutations)(rng, changed)
    return bytes(changed)


def _part(rng: random.Random, name: bytes, body: bytes, is_file: bool) -> bytes:
    disposition = b'form-data; name="' + name + b'"'
    if is_file and rng.random() < 0.8:
        names = (
            b"a.wav",
            b"",
            b"../../etc/passwd",
            b"a\0b.mp3",
            "名前.flac".encode(),
            b"x" * 3000,
            b"\xff\xfe",
            b'\\"',
        )
        disposition += b'; filename="' + rng.choice(names) + b'"'
    headers = [b"Content-Disposition: " + disposition]
    if rng.random() < 0.2:
        headers.append(
            rng.choice(
                (
                    b"Content-Type: audio/wav",
                    b"Content-Type: text/plain; charset=utf-16",
                    b"Content-Type: text/plain; charset=\xff\0",
                    b"Content-Transfer-Encoding: base64",
                    b"X-Long: " + b"y" * rng.choice((100, 20_000)),
                    b"no colon",
                    b": no name",
                    b"Content-Disposition: attachment",
                    b"\0: \0",
                )
            )
        )
    if rng.random() < 0.1:
        headers.reverse()
    return b"\r\n".join(headers) + b"\r\n\r\n" + body


def _boundary(rng: random.Random) -> tuple[str, bytes]:
    """As the header says it, and as the body has it."""
    match rng.randrange(12):
        case 0:
            long = "b" * rng.choice((70, 71, 200, 5000))
            return long, long.encode()
        case 1:
            return '"with space"', b"with space"
        case 2:
            return rng.choice(("", '""', "'", '"', ";", "=")), b"x"
        case 3:
            return "--", b"--"
        case 4:
            return "x", b"y"
        case 5:
            return "x; charset=utf-16; boundary=z", rng.choice((b"x", b"z"))
        case _:
            return "x", b"x"


def form(rng: random.Random, file: bytes, is_broken: bool) -> Case:
    """A form around the file: valid, with sensible fields or not, or broken in one of many ways."""
    parts = []
    sensible = rng.sample(SENSIBLE_FIELDS, rng.choice((0, 1, 3)))
    chosen = rng.choices(FIELDS, k=rng.choice((1, 2, 6, 70))) if is_broken and rng.random() < 0.6 else sensible
    for name, values in chosen:
        value = rng.choice(values).encode()
        if is_broken and rng.random() < 0.1:
            value += rng.choice((b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"z" * 70_000))
        parts.append(_part(rng, name.encode(), value, False))
    parts.append(_part(rng, b"file", file, True))
    if is_broken:
        if rng.random() < 0.2:
            parts.append(_part(rng, b"file", file[:1000], True))
        rng.shuffle(parts)
    shown, boundary = _boundary(rng) if is_broken else ("x", b"x")
    line = b"\n" if is_broken and rng.random() < 0.05 else b"\r\n"
    body = b"".join(b"--" + boundary + line + part + line for part in parts) + b"--" + boundary + b"--" + line
    content_type = TYPE + shown
    if is_broken:
        if rng.random() < 0.4:
            body = mutated(rng, body)
        if rng.random() < 0.05:
            body = rng.choice((b"", b"\r\n" * 100, b"preamble" * 50 + body, body + b"epilogue" * 50, body + body))
        if rng.random() < 0.05:
            other = ("application/json", "multipart/mixed; boundary=x", "multipart/form-data", "", "text/plain; \t;;=")
            content_type = rng.choice(other)
    return Case(content_type, body)


def case(number: int) -> Case:
    """Request `number`: broken audio in a valid form, or a broken form around audio that may be broken too."""
    rng = random.Random(number)
    file = rng.choice(seeds())
    if number % 2:
        return form(rng, mutated(rng, file), is_broken=False)
    return form(rng, mutated(rng, file) if rng.random() < 0.3 else file, is_broken=True)
