"""A JSON body with audio in base64, decoded to the spool as it arrives: it needs no more memory than a form.

Only strings too long for a field are spooled. The rest of the body is small and parsed at the end.
"""

import binascii
import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from service.errors import InvalidValue, MalformedForm
from service.http.form.multipart import MAX_FIELD_BYTES, MAX_PARTS, BodyReader, FieldListener

IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # up to the quote, or to a backslash at the piece's end
ALPHABET = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
URL_SAFE = bytes.maketrans(b"-_", b"+/")
BLANK = b" \t\r\n"
SPOOLED = "\0spooled\0"  # stands for the long string; the same text from a client has no audio
MAX_SKELETON_BYTES = 1024 * 1024  # the whole body except the audio
MAX_STRINGS = 16 * MAX_PARTS  # names and values, including those inside ignored fields
FILE_KEYS = ("file", "input_audio", "audio")


class Base64Decoder:
    """Decodes base64 (standard, URL-safe or a data URL) piece by piece. Raises InvalidValue."""

    def __init__(self) -> None:
        self._head: bytes | None = b""  # until it is known whether this is a data URL
        self._rest = b""
        self._has_ended = False

    def feed(self, text: bytes, *, is_last: bool = False) -> bytes:
        """The bytes of the next piece of text."""
        if self._head is not None:
            text, self._head = self._head + text, None
            if text[:5].lower() == b"data:":
                head, comma, text = text.partition(b",")
                if not comma or not head.lower().endswith(b";base64"):
                    raise InvalidValue("The audio's data URL isn't base64.", param="file")
        text = self._rest + text.translate(URL_SAFE, BLANK)
        if not ALPHABET.fullmatch(text) or (self._has_ended and text):
            raise InvalidValue("The audio isn't base64.", param="file")
        self._has_ended = text.endswith(b"=")
        whole = len(text) if is_last else len(text) // 4 * 4
        text, self._rest = text[:whole], text[whole:]
        try:
            return binascii.a2b_base64(text + b"=" * (-len(text) % 4))
        except binascii.Error:
            raise InvalidValue("The audio isn't base64.", param="file") from None


def unescaped(text: bytes) -> bytes:
    """The content of a JSON string, unescaped."""
    if b"\\" not in text:
        return text
    try:
        return str(json.loads(b'"' + text + b'"')).encode("utf-8", "replace")
    except ValueError:
        raise MalformedForm("The body isn't JSON.") from None


def without_lone_surrogates(value: Any) -> Any:
    """The same JSON value with U+FFFD for lone surrogates, which JavaScript leaves where it cuts a text."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def strict_json(text: str | bytes | bytearray) -> Any:
    """A JSON value that any answer can repeat: its numbers are finite, and lone surrogates become U+FFFD.

    Raises ValueError, RecursionError.
    """
    value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    return value if isinstance(text, str) and "\\u" not in text else without_lone_surrogates(value)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


class JsonReader(BodyReader):
    """application/json: an object of fields. The file is in `file`, in `audio`, or in `data` of `input_audio`."""

    def __init__(self, *, max_file_bytes: int, on_field: FieldListener) -> None:
        super().__init__(max_file_bytes=max_file_bytes, on_field=on_field)
        self.max_body_bytes = 2 * max_file_bytes + MAX_SKELETON_BYTES  # base64 and its escapes
        self._skeleton = bytearray()
        self._n_strings = 0
        self._text = bytearray()  # of the current string; once it is spooled, the part not decoded yet
        self._in_string = self._is_escaping = False  # the latter: the last piece ended with a backslash
        self._decoder: Base64Decoder | None = None
        self._long: Base64Decoder | None = None  # the current string's decoder

    def _feed(self, piece: bytes) -> None:
        start = 0
        while start < len(piece):
            if not self._in_string:
                quote = piece.find(b'"', start)
                end = len(piece) if quote < 0 else quote
                self._add_to_skeleton(piece[start:end])
                start, self._in_string = end + 1, quote >= 0
                continue
            match = IN_STRING.match(piece, start + self._is_escaping)
            assert match is not None
            end = match.end()
            self._is_escaping = piece[end : end + 1] == b"\\"
            is_whole = piece[end : end + 1] == b'"'
            self._text += piece[start : end + self._is_escaping]
            start = end + 1
            if is_whole:
                self._end_string()
            elif len(self._text) > MAX_FIELD_BYTES or self._long is not None:
                self._spool()

    def _add_to_skeleton(self, data: bytes) -> None:
        self._skeleton += data
        if len(self._skeleton) > MAX_SKELETON_BYTES:
            raise MalformedForm(f"The JSON body has more than {MAX_SKELETON_BYTES} bytes apart from its audio.")

    def _spool(self, *, is_last: bool = False) -> None:
        """Decode a long string as far as possible, except an escape that may be incomplete."""
        if self._long is None:
            if self._decoder is not None:
                raise MalformedForm("The JSON body has two strings too long for a field; only the audio may be.")
            self._decoder = self._long = Base64Decoder()
            self._open_file()
        escape = -1 if is_last else self._text.rfind(b"\\", max(0, len(self._text) - 6))
        end = len(self._text) if escape < 0 else escape
        self._add_to_file(self._long.feed(unescaped(bytes(self._text[:end])), is_last=is_last))
        del self._text[:end]

    def _end_string(self) -> None:
        self._n_strings += 1
        if self._n_strings > MAX_STRINGS:
            raise MalformedForm(f"The JSON body has more than {MAX_STRINGS} strings.")
        if self._long is not None or len(self._text) > MAX_FIELD_BYTES:
            self._spool(is_last=True)
            self._long = None
            self._add_to_skeleton(json.dumps(SPOOLED).encode())
        else:
            self._add_to_skeleton(b'"' + self._text + b'"')
        self._text.clear()
        self._in_string = False

    def _finish(self) -> None:
        try:
            body = without_lone_surrogates(json.loads(self._skeleton))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or self._in_string:
            raise MalformedForm("The body must be a JSON object of fields.")
        audio = [audio_of(body.pop(key)) for key in FILE_KEYS if key in body]
        if self._decoder is not None and SPOOLED not in audio:
            raise MalformedForm(f"A string of the JSON body other than the audio is over {MAX_FIELD_BYTES} bytes.")
        for text in audio:
            if text is not None and text != SPOOLED:
                self._open_file()
                self._add_to_file(Base64Decoder().feed(text.encode("utf-8", "replace"), is_last=True))
        found = (field for name, value in body.items() for field in texts(name, value))
        fields = list(itertools.islice(found, MAX_PARTS + 1))
        if len(fields) > MAX_PARTS:
            raise MalformedForm(f"The JSON body has more than {MAX_PARTS} fields.")
        for name, text in fields:
            self.on_field(name, text)


def audio_of(value: Any) -> str | None:
    """The base64 of an audio field: a string, or an object with `data`; None for null."""
    if isinstance(value, dict):
        value = value.get("data")
    if value is not None and not isinstance(value, str):
        raise InvalidValue("The audio must be a base64 string, or an object with one in data.", param="file")
    return value


def texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A JSON value as form fields: a list as name[] fields, an object as JSON, null as none."""
    if isinstance(value, list):
        for item in value:
            yield f"{name.removesuffix('[]')}[]", item if isinstance(item, str) else json.dumps(item)
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)
