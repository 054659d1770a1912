"""Chooses the reader of a request's body by its media type: a form, JSON, or the file itself."""

from collections.abc import Callable
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header

from service.errors import MalformedForm
from service.http.form.json_body import Base64Decoder, JsonReader
from service.http.form.multipart import MAX_PARTS, BodyReader, FieldListener, FormReader

SOUND_TYPES = ("audio/", "video/", "application/octet-stream", "application/ogg")
MAX_URLENCODED_BYTES = 1024 * 1024


class SoundReader(BodyReader):
    """A body that is the file: `curl --data-binary @a.wav -H 'Content-Type: audio/wav'`."""

    content_type = ""

    def _feed(self, piece: bytes) -> None:
        if self.file is None:
            self._open_file(content_type=self.content_type)
        self._add_to_file(piece)

    def _finish(self) -> None:
        """Nothing to do at the end."""


class UrlencodedReader(SoundReader):
    """application/x-www-form-urlencoded: a small form, its file in base64; or sound, which curl labels so."""

    _form: bytearray | None = None

    def _feed(self, piece: bytes) -> None:
        if self.file is None and self._form is None and piece.isascii() and b"\0" not in piece:
            self._form = bytearray()
        if self._form is None:
            super()._feed(piece)
            return
        self._form += piece
        if len(self._form) > MAX_URLENCODED_BYTES:
            raise MalformedForm("The urlencoded form is too large; send multipart/form-data, as curl -F does.")

    def _finish(self) -> None:
        try:
            fields = parse_qsl((self._form or b"").decode(), keep_blank_values=True, max_num_fields=MAX_PARTS)
        except ValueError:
            raise MalformedForm("The urlencoded form cannot be parsed.") from None
        for name, text in fields:
            if name == "file":
                self._open_file()
                text = text.replace(" ", "+")  # an unescaped + is parsed as a space
                self._add_to_file(Base64Decoder().feed(text.encode(), is_last=True))
            else:
                self.on_field(name, text)


def reader_for(
    content_type: str, *, max_file_bytes: int, on_field: FieldListener, is_text: Callable[[str], bool]
) -> BodyReader:
    """The reader for a body of this type. Raises MalformedForm for an unsupported type."""
    media_type = parse_options_header(content_type)[0].decode("latin-1").lower()
    if media_type == "application/json":
        return JsonReader(max_file_bytes=max_file_bytes, on_field=on_field)
    if media_type == "application/x-www-form-urlencoded":
        return UrlencodedReader(max_file_bytes=max_file_bytes, on_field=on_field)
    if media_type.startswith(SOUND_TYPES):
        reader = SoundReader(max_file_bytes=max_file_bytes, on_field=on_field)
        reader.content_type = content_type
        return reader
    return FormReader(content_type, max_file_bytes=max_file_bytes, on_field=on_field, is_text=is_text)
