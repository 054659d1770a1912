"""Multipart bodies: fields in order, the file under its cap, anything malformed refused as a client's fault."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from service.errors import InvalidValue, MalformedForm, UnsupportedValue, UploadTooLarge, WispError
from service.http.form.multipart import MAX_FIELD_BYTES, MAX_PARTS, FormReader

TYPE = "multipart/form-data; boundary=edge"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    suffix = f'; filename="{filename}"' if filename else ""
    return f'--edge\r\nContent-Disposition: form-data; name="{name}"{suffix}\r\n\r\n'.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--edge--\r\n"


def read(
    body: bytes,
    *,
    cap: int = 1000,
    step: int = 7,
    content_type: str = TYPE,
    refuse: str = "",
    is_text: Callable[[str], bool] = lambda name: True,
) -> tuple[bytes | None, list[tuple[str, str]], int]:
    """(the file, the fields, the bytes that were taken from the body)."""
    fields: list[tuple[str, str]] = []
    taken = 0

    def on_field(name: str, text: str) -> None:
        if name == refuse:
            raise UnsupportedValue("No.", param=name)
        fields.append((name, text))

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for start in range(0, len(body), step):
            taken = min(len(body), start + step)
            yield body[start:taken]

    async def run() -> bytes | None:
        reader = FormReader(content_type, max_file_bytes=cap, on_field=on_field, is_text=is_text)
        try:
            file = await reader.read(pieces())
            if file is None:
                return None
            with file:
                return file.read()
        except WispError as error:
            error.add_note(f"after {taken} bytes")
            assert reader.file is None or reader.file.closed
            raise

    return asyncio.run(run()), fields, taken


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_form_is_its_fields_in_order_and_its_file(step: int) -> None:
    sound = bytes(range(256)) * 3
    body = form(
        part("model", b"tiny_en"),
        part("prompt", "Café".encode()),
        part("file", sound, "a.wav"),
        part("stream", b"true"),
    )
    file, fields, _ = read(body, step=step)
    assert file == sound
    assert fields == [("model", "tiny_en"), ("prompt", "Café"), ("stream", "true")]


def test_a_file_without_a_filename_is_a_file_by_its_field_name() -> None:
    assert read(form(part("file", b"\x00\xff")))[0] == b"\x00\xff"


def test_a_form_without_a_file_gives_none() -> None:
    assert read(form(part("model", b"x")))[0] is None


def test_a_file_at_the_cap_is_taken_and_one_byte_more_is_not() -> None:
    assert read(form(part("file", b"x" * 1000, "a")))[0] == b"x" * 1000
    with pytest.raises(UploadTooLarge, match="limit of 1000 bytes; 1001 bytes were read"):
        read(form(part("file", b"x" * 1001, "a")), step=1)


def test_a_large_file_is_refused_long_before_its_end() -> None:
    with pytest.raises(UploadTooLarge) as raised:
        read(form(part("file", b"x" * 1_000_000, "a")), step=1000)
    assert int(raised.value.__notes__[0].split()[1]) < 3000


def test_a_body_cannot_be_endless_beside_its_file() -> None:
    with pytest.raises(UploadTooLarge):
        read(form(part("file", b"x", "a")) + b"\r\n" * 4_000_000, step=1 << 20)


def test_a_bad_field_is_refused_before_the_file_is_read() -> None:
    with pytest.raises(UnsupportedValue) as raised:
        read(form(part("response_format", b"pdf"), part("file", b"x" * 900, "a")), refuse="response_format")
    assert int(raised.value.__notes__[0].split()[1]) < 100


def test_two_files_are_one_too_many() -> None:
    with pytest.raises(InvalidValue) as raised:
        read(form(part("file", b"x", "a"), part("file", b"y", "b")))
    assert raised.value.param == "file"


def test_a_text_field_may_come_as_a_file() -> None:
    body = form(part("model", b"tiny_en", "blob"), part("file", b"x", "a"))
    assert read(body)[:2] == (b"x", [("model", "tiny_en")])


def test_a_file_under_an_unknown_name_is_heard_of_and_not_kept() -> None:
    """However large it is: its listener may refuse it, before it is read."""
    body = form(part("audio", b"x" * (MAX_FIELD_BYTES + 1), "a.wav"), part("file", b"y", "a"))
    assert read(body, step=5000, is_text=lambda name: False)[:2] == (b"y", [("audio", "")])
    with pytest.raises(UnsupportedValue) as raised:
        read(body, is_text=lambda name: False, refuse="audio")
    assert int(raised.value.__notes__[0].split()[1]) < 100


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("preamble", [b"", b"\n", b"This is a form.\nIn parts.\n", b"--edg\n"])
@pytest.mark.parametrize("epilogue", [b"", b"\n", b"\nThe end.\n--edge\n"])
def test_lines_may_end_in_lf_with_text_before_and_after(step: int, preamble: bytes, epilogue: bytes) -> None:
    sounds = [bytes(range(256)) * 3, b"", b"\n", b"\r\n\n\r", b"\n--edg", b"a\r\n--edg\r\n\r\n"]
    for sound in sounds:
        for line_end in (b"\n", b"\r\n"):
            parts = form(part("model", b"tiny_en"), part("prompt", b""), part("file", b"SOUND", "a.wav"))
            body = parts.replace(b"\r\n", line_end).replace(b"SOUND", sound)
            whole = preamble.replace(b"\n", line_end) + body.removesuffix(line_end) + epilogue.replace(b"\n", line_end)
            file, fields, _ = read(whole, step=step)
            assert (file, fields) == (sound, [("model", "tiny_en"), ("prompt", "")]), (sound, line_end)


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("padding", [b" ", b"  ", b"\t", b" \t" * 400])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_blanks_may_follow_a_boundary(step: int, padding: bytes, line_end: bytes) -> None:
    """Transport padding: RFC 2046, section 5.1.1."""
    for preamble in (b"", b"A preamble." + line_end):
        for sound in (bytes(range(256)) * 3, b"--edge", b" \r\n--edg "):
            parts = form(part("model", b"tiny_en"), part("file", b"SOUND", "a.wav"), part("prompt", b"x"))
            padded = parts.replace(b"--edge--", b"--edge--" + padding).replace(b"--edge\r", b"--edge" + padding + b"\r")
            body = preamble + padded.replace(b"\r\n", line_end).replace(b"SOUND", sound)
            file, fields, _ = read(body, step=step)
            assert (file, fields) == (sound, [("model", "tiny_en"), ("prompt", "x")])


def test_a_preamble_has_an_end() -> None:
    with pytest.raises(MalformedForm, match="does not begin with its boundary") as raised:
        read(b"x" * 1_000_000, step=1000, cap=1 << 30)
    assert int(raised.value.__notes__[0].split()[1]) < 70_000


def test_header_lines_that_end_in_lf_are_as_bounded_as_others() -> None:
    with pytest.raises(MalformedForm):
        read(b"--edge\n" + b"X: y\n" * 100_000, step=1 << 20, cap=1 << 30)


def test_a_long_text_field_is_refused_by_name() -> None:
    with pytest.raises(InvalidValue) as raised:
        read(form(part("prompt", b"x" * (MAX_FIELD_BYTES + 1))), step=50_000)
    assert raised.value.param == "prompt"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("", b""),
        ("application/json", b"{}"),
        ("multipart/form-data", form(part("file", b"x", "a"))),
        ("multipart/form-data; boundary=" + "b" * 1000, b""),
        ("multipart/form-data; boundary=other", form(part("file", b"x", "a"))),
        (TYPE, b""),
        (TYPE, b"no form at all"),
        (TYPE, form(part("file", b"x", "a"))[:-10]),
        (TYPE, b"--edge\r\n\r\nno name\r\n--edge--\r\n"),
        (TYPE, b"--edge\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--edge--\r\n"),
        (TYPE, b"--edge\r\n" + b"X: y\r\n" * 100 + b"\r\n\r\n--edge--\r\n"),
        (TYPE, b"--edge\r\nX: " + b"y" * 100_000 + b"\r\n\r\n--edge--\r\n"),
        (TYPE, form(*[part("prompt", b"x")] * (MAX_PARTS + 1))),
    ],
)
def test_what_is_no_form_is_a_malformed_one(content_type: str, body: bytes) -> None:
    with pytest.raises(MalformedForm):
        read(body, content_type=content_type, step=1 << 20)


def test_bytes_that_are_no_utf8_do_no_harm() -> None:
    assert read(form(part("prompt", b"\xff\xfe")))[1] == [("prompt", "\ufffd\ufffd")]


def test_a_damaged_form_is_read_or_refused() -> None:
    chance = random.Random(0)
    good = form(part("model", b"tiny_en"), part("file", b"x" * 40, "a.wav"), part("language", b"en"))
    for _ in range(2000):
        body = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(body))
            match chance.randrange(3):
                case 0:
                    body[at] = chance.randrange(256)
                case 1:
                    del body[at : at + chance.randrange(1, 9)]
                case _:
                    body[at:at] = chance.choice([b"\r\n", b"--edge", b'"', b";", b"\x00", b"filename=", b"=?utf-8?b?"])
        try:
            read(bytes(body), step=64)
        except WispError as error:
            assert 400 <= error.status < 500
