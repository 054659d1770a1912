"""Bodies other than multipart forms: JSON with base64, urlencoded text, the sound itself."""

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.errors import InvalidValue, MalformedForm, UploadTooLarge
from service.http.form import json_body
from service.http.form.bodies import SoundReader, UrlencodedReader, reader_for
from service.http.form.json_body import MAX_SKELETON_BYTES, MAX_STRINGS, JsonReader
from service.http.form.multipart import MAX_FIELD_BYTES, MAX_PARTS, BodyReader

SHORT = bytes(range(256))
LONG = random.Random(0).randbytes(3 * MAX_FIELD_BYTES)


def read(
    body: bytes, content_type: str = "application/json", *, step: int = 1000, cap: int = 10_000_000
) -> tuple[bytes | None, dict[str, Any], BodyReader]:
    """(the file, the fields, its closed reader)."""
    fields: dict[str, Any] = {}

    def on_field(name: str, text: str) -> None:
        fields.setdefault(name, []).append(text)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    reader = reader_for(content_type, max_file_bytes=cap, on_field=on_field, is_text=lambda name: True)

    async def run() -> bytes | None:
        file = await reader.read(pieces())
        if file is None:
            return None
        with file:
            return file.read()

    try:
        return asyncio.run(run()), fields, reader
    finally:
        assert reader.file is None or reader.file.closed


def encoded(sound: bytes) -> str:
    return base64.b64encode(sound).decode()


def escaped(text: str) -> str:
    """As PHP and .NET write base64 in JSON."""
    return text.replace("/", "\\/").replace("+", "\\u002B")


@pytest.mark.parametrize("sound", [SHORT, LONG, LONG[:-1], LONG[:-2]], ids=len)
@pytest.mark.parametrize("step", [1, 777, 1 << 20])
@pytest.mark.parametrize(
    "template",
    [
        '{"model": "tiny_en", "input_audio": {"data": "%s", "format": "wav"}, "language": "en"}',
        '{"file": "%s", "model": "tiny_en", "language": "en"}',
        '{"model": "tiny_en", "language": "en", "audio": "data:audio/wav;base64,%s"}',
    ],
)
def test_audio_is_base64_in_json(sound: bytes, step: int, template: str) -> None:
    if step == 1 and len(sound) > len(SHORT):
        sound = sound[: 2 * MAX_FIELD_BYTES]
    text = encoded(sound)
    for data in (text, escaped(text), text.rstrip("="), text.replace("+", "-").replace("/", "_")):
        file, fields, _ = read((template % data).encode(), step=step)
        assert file == sound and fields == {"model": ["tiny_en"], "language": ["en"]}
        if step == 1:
            break


def test_lines_of_base64_may_be_broken() -> None:
    lines = base64.encodebytes(LONG).decode()
    assert read(json.dumps({"file": lines}).encode())[0] == LONG
    assert read(f'{{"file": "{lines}"}}'.encode())[0] == LONG


def test_json_values_are_fields() -> None:
    body = {
        "file": encoded(SHORT),
        "stream": True,
        "temperature": 0.5,
        "language": None,
        "timestamp_granularities": ["word", "segment"],
        "include[]": ["logprobs"],
        "chunking_strategy": {"type": "server_vad"},
        "prompt": 'A "quoted" \\ film: naïve.',
    }
    assert read(json.dumps(body).encode())[1] == {
        "stream": ["true"],
        "temperature": ["0.5"],
        "timestamp_granularities[]": ["word", "segment"],
        "include[]": ["logprobs"],
        "chunking_strategy": ['{"type": "server_vad"}'],
        "prompt": ['A "quoted" \\ film: naïve.'],
    }


def test_a_long_text_is_decoded_as_it_arrives() -> None:
    """Memory use stays small, whatever the size of the audio."""
    reader = JsonReader(max_file_bytes=100_000_000, on_field=lambda name, text: None)
    reader._feed(b'{"input_audio": {"data": "')
    for _ in range(50):
        reader._feed(b"A" * MAX_FIELD_BYTES)
    assert reader.file_bytes > 2_000_000
    assert len(reader._text) + len(reader._skeleton) < 2 * MAX_FIELD_BYTES
    reader.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"text"',
        b"{",
        b"{" * 100_000,
        b'{"file": "QUJD"',
        b'{"file": "QUJD',
        b'{"file": "\\uZZZZ"}',
        b'{"prompt": "' + b"A" * 2 * MAX_FIELD_BYTES + b'", "file": "QUJD"}',
        b'{"file": "' + b"A" * 2 * MAX_FIELD_BYTES + b'", "prompt": "' + b"A" * 2 * MAX_FIELD_BYTES + b'"}',
        b'{"file": "' + b"A" * 2 * MAX_FIELD_BYTES,
        b'{"file": "' + b"\\x" * 2 * MAX_FIELD_BYTES + b'"}',
        b" " * (MAX_SKELETON_BYTES + 1),
        b'{"keywords": [' + b",".join([b'"a"'] * (MAX_PARTS + 1)) + b"]}",
        b'{"keywords": [' + b",".join([b"0"] * (MAX_PARTS + 1)) + b"]}",
        b'{"metadata": [[' + b",".join([b'""'] * MAX_STRINGS) + b"]]}",
        b"\xff\xfe",
    ],
    ids=lambda body: str(body[:20]),
)
def test_json_other_than_an_object_of_fields_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedForm):
        read(body)


@pytest.mark.parametrize(
    "data",
    ['"not base64!"', '"QUI=QUJD"', '"A"', "5", '["QUJD"]', '{"data": 5}', '"data:audio/wav,abc"', '"data:;base64"'],
)
def test_audio_that_is_not_base64_is_refused(data: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        read(f'{{"file": {data}}}'.encode())
    assert raised.value.param == "file"
    if data == '"not base64!"':
        with pytest.raises(InvalidValue):
            read(('{"file": "' + "A" * MAX_FIELD_BYTES + 'AA!"}').encode())


def test_two_files_are_one_too_many() -> None:
    for other in (encoded(SHORT), encoded(LONG)):
        with pytest.raises(InvalidValue, match="twice"):
            read(json.dumps({"file": encoded(SHORT), "audio": other}).encode())


@pytest.mark.parametrize("sound", [SHORT, LONG], ids=len)
def test_the_cap_is_of_decoded_bytes(sound: bytes) -> None:
    body = json.dumps({"file": encoded(sound)}).encode()
    assert read(body, cap=len(sound))[0] == sound
    with pytest.raises(UploadTooLarge):
        read(body, cap=len(sound) - 1)


def test_a_body_without_audio_gives_none() -> None:
    for body in (b"{}", b'{"file": null}', b'{"input_audio": {"format": "wav"}}', b'{"file": "\\u0000spooled\\u0000"}'):
        assert read(body)[0] is None


def test_json_is_read_the_same_however_it_is_cut() -> None:
    chance = random.Random(1)
    body = ('{"prompt": "a\\\\\\"b", "file": "' + escaped(encoded(LONG)) + '"}').encode()
    for _ in range(20):
        file, fields, _ = read(body, step=chance.randrange(1000, 90_000))
        assert file == LONG and fields == {"prompt": ['a\\"b']}


class CountedText(bytearray):
    """Counts the bytes that are added to it."""

    n_added = 0

    def __iadd__(self, data: Any) -> "CountedText":  # type: ignore[misc]  # bytearray + bytes is a bytearray
        self.n_added += len(data)
        self.extend(data)
        return self


@pytest.mark.parametrize("step", [1, 10, 1 << 16])
@pytest.mark.parametrize("inside", ['","' * (MAX_STRINGS - 100), "a" * 60_000, "\\n" * 30_000, "\\\\" * 30_000])
def test_each_byte_is_looked_at_and_kept_once(monkeypatch: pytest.MonkeyPatch, inside: str, step: int) -> None:
    n_matched, pattern = 0, json_body.IN_STRING

    class CountedPattern:
        def match(self, text: bytes, start: int = 0) -> Any:
            nonlocal n_matched
            match = pattern.match(text, start)
            assert match is not None
            n_matched += match.end() - start
            return match

    monkeypatch.setattr(json_body, "IN_STRING", CountedPattern())
    body = f'{{"prompt": ["{inside}"]}}'.encode()
    reader = JsonReader(max_file_bytes=1, on_field=lambda name, text: None)
    reader._text = text = CountedText()
    for start in range(0, len(body), step):
        reader._feed(body[start : start + step])
    assert bytes(reader._skeleton) == body
    assert n_matched <= len(body) and text.n_added <= len(body)


# The sound alone, and urlencoded


@pytest.mark.parametrize(
    "content_type", ["audio/wav", "audio/x-m4a; codecs=mp4a", "video/webm", "application/octet-stream", "AUDIO/MPEG"]
)
def test_a_body_may_be_the_file(content_type: str) -> None:
    assert read(LONG, content_type)[0] == LONG
    assert isinstance(read(b"", content_type)[2], SoundReader) and read(b"", content_type)[0] is None
    with pytest.raises(UploadTooLarge):
        read(LONG, content_type, cap=len(LONG) - 1)


def test_what_curl_sends_without_a_type_is_the_file_too() -> None:
    assert read(b"RIFF\x24\0\0\0WAVE" + LONG, "application/x-www-form-urlencoded")[0] == b"RIFF\x24\0\0\0WAVE" + LONG


def test_an_urlencoded_form_has_its_file_in_base64() -> None:
    kind = "application/x-www-form-urlencoded"
    body = f"model=tiny_en&prompt=A+film&file={encoded(SHORT)}&language=".encode()
    file, fields, reader = read(body, kind)
    assert file == SHORT and fields == {"model": ["tiny_en"], "prompt": ["A film"], "language": [""]}
    assert isinstance(reader, UrlencodedReader)
    for broken in (b"a=" + b"x" * 2_000_000, b"&".join([b"a=b"] * (MAX_PARTS + 1)), b"a=" + b"x" * 1000 + b"\xff"):
        with pytest.raises(MalformedForm):
            read(broken, kind)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/xml", "multipart/mixed; boundary=x", ";;"])
def test_another_type_is_refused(content_type: str) -> None:
    with pytest.raises(MalformedForm):
        read(b"x", content_type)


def test_half_a_character_is_replaced() -> None:
    """As JavaScript leaves it when it cuts a text inside an emoji."""
    body = json.dumps(
        {"file": encoded(SHORT), "prompt": "cut \ud83d", "keywords": ["\udfff", "whole \U0001f3b5"]}
    ).encode()
    fields = read(body, "application/json")[1]
    assert fields["prompt"] == ["cut \ufffd"] and "".join(fields["keywords[]"]) == "\ufffdwhole \U0001f3b5"
