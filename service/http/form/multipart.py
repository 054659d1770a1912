"""Reads a request's body as it arrives: passes on fields in order, spools the file to disk up to a limit. No HTTP."""

import asyncio
import contextlib
import errno
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Callable
from typing import BinaryIO, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.audio.headerless import HELD_BYTES, header_for, is_raw
from service.errors import InvalidValue, MalformedForm, NoSpace, StartError, UploadTooLarge
from service.http.form.multipart_lines import LineEnds

PIECE_BYTES = 64 * 1024  # parsed, counted and written per step
SPOOL_BYTES = 1024 * 1024  # larger files go to disk
MAX_PARTS = 64
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MAX_FIELD_BYTES = 64 * 1024
OVERHEAD_BYTES = MAX_PARTS * (MAX_FIELD_BYTES + 16 * 1024)  # for all fields and headers of a body, without its file

FieldListener = Callable[[str, str], None]


def find_spool_folder() -> None:
    """Choose the folder for large uploads once, as Python does: TMPDIR, /tmp and so on. Raises StartError.

    Python finds it by writing to it, which fails on a full disk, so it must not happen during a request.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise StartError(f"Uploads need a folder for temporary files ({error.strerror}); name one in TMPDIR.") from None


class BodyReader(ABC):
    """Reads one body. `on_field(name, text)` gets each complete text field and may reject it by raising.

    Each kind of body is a subclass: `_feed` takes the next piece, `_finish` the end.
    """

    def __init__(self, *, max_file_bytes: int, on_field: FieldListener) -> None:
        self.max_file_bytes, self.on_field = max_file_bytes, on_field
        self.max_body_bytes = max_file_bytes + OVERHEAD_BYTES
        self.file: BinaryIO | None = None
        self.file_bytes = 0
        self._to_write: list[bytes] = []
        self._header, self._start = b"", bytearray()  # of a file whose name says that it has none; its first bytes

    @abstractmethod
    def _feed(self, piece: bytes) -> None:
        """Take the next piece."""

    @abstractmethod
    def _finish(self) -> None:
        """Take the end."""

    async def read(self, body: AsyncIterable[bytes]) -> BinaryIO | None:
        """Read the whole body and return the field `file`, rewound, or None if there is none.

        The caller closes it. Raises MalformedForm, UploadTooLarge, NoSpace and what `on_field` raises; then nothing
        stays open.
        """
        read_bytes = 0
        try:
            async for chunk in body:
                for start in range(0, len(chunk), PIECE_BYTES):
                    piece = chunk[start : start + PIECE_BYTES]
                    read_bytes += len(piece)
                    if read_bytes > self.max_body_bytes:
                        raise UploadTooLarge(read_bytes, self.max_file_bytes)
                    self._feed(piece)
                    await self._write_file()
            self._finish()
            self._begin_file()
            await self._write_file()
            if self.file is not None:
                self.file.seek(0)
        except BaseException as error:
            self.close()
            if isinstance(error, FormParserError):
                raise MalformedForm("The multipart/form-data body cannot be parsed.") from error
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise NoSpace from error
            raise
        return self.file

    def close(self) -> None:
        """Drop the spooled file. Idempotent."""
        if self.file is not None:
            with contextlib.suppress(OSError):  # a full disk fails the remaining writes
                self.file.close()

    def _open_file(self, filename: str = "", content_type: str = "") -> None:
        if self.file is not None:
            raise InvalidValue("The form field 'file' is given twice; send one file per request.", param="file")
        # SpooledTemporaryFile is a full binary file since Python 3.11, but not in its stubs.
        self.file = cast(BinaryIO, tempfile.SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115
        self._header = header_for(filename, content_type)

    def _add_to_file(self, data: bytes) -> None:
        self.file_bytes += len(data)
        if self.file_bytes > self.max_file_bytes:
            raise UploadTooLarge(self.file_bytes, self.max_file_bytes)
        if self._header:
            self._start += data
            if len(self._start) >= HELD_BYTES:
                self._begin_file()
        else:
            self._to_write.append(data)

    def _begin_file(self) -> None:
        """Write the bytes held back of a file that may lack its header, after a header if it does. Idempotent."""
        start, header = bytes(self._start), self._header
        self._start.clear()
        self._header = b""
        self._to_write += [header, start] if start and is_raw(start) else [start]

    async def _write_file(self) -> None:
        if self.file is None or not self._to_write:
            return
        data = b"".join(self._to_write)
        self._to_write.clear()
        if self.file_bytes > SPOOL_BYTES:  # on disk, or about to go there
            await asyncio.to_thread(self.file.write, data)
        else:
            self.file.write(data)


class FormReader(BodyReader):
    """multipart/form-data. The part named `file` is the file; any other part is text, even with a filename."""

    def __init__(
        self,
        content_type: str,
        *,
        max_file_bytes: int,
        on_field: FieldListener,
        is_text: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """`is_text`: whether to read a part of this name that comes as a file; else `on_field` gets only its name."""
        media_type, parameters = parse_options_header(content_type)
        if media_type != b"multipart/form-data" or not parameters.get(b"boundary"):
            raise MalformedForm("The body must be multipart/form-data with a boundary.")
        super().__init__(max_file_bytes=max_file_bytes, on_field=on_field)
        self.is_text = is_text
        self._lines = LineEnds(parameters[b"boundary"])
        self._n_parts = 0
        self._header_name = self._header_value = b""
        self._disposition = self._content_type = b""
        self._name = ""
        self._in_file = self._in_ignored = False
        self._ended = False
        self._text = bytearray()
        try:
            self._parser = MultipartParser(
                parameters[b"boundary"],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise MalformedForm("The boundary of the multipart/form-data body is too long.") from error

    def _feed(self, piece: bytes) -> None:
        if not self._ended and (data := self._lines.feed(piece)):
            self._parser.write(data)

    def _finish(self) -> None:
        if not self._ended:
            raise MalformedForm("The multipart/form-data body ends before its last boundary.")

    def _on_part_begin(self) -> None:
        self._n_parts += 1
        if self._n_parts > MAX_PARTS:
            raise MalformedForm(f"The form has more than {MAX_PARTS} parts.")
        self._disposition = self._content_type = b""
        self._text = bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        elif self._header_name.lower() == b"content-type":
            self._content_type = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is None:
            raise MalformedForm("A part of the form has no name in its Content-Disposition.")
        self._name = name.decode("utf-8", "replace")
        # By its name, because some clients send no filename.
        self._in_file = self._name == "file"
        self._in_ignored = not self._in_file and b"filename" in options and not self.is_text(self._name)
        if self._in_file:
            filename = options.get(b"filename", b"").decode("utf-8", "replace")
            self._open_file(filename, self._content_type.decode("latin-1"))
        elif self._in_ignored:
            self.on_field(self._name, "")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._add_to_file(data[start:end])
        elif self._in_ignored:
            return
        elif len(self._text) + end - start > MAX_FIELD_BYTES:
            raise InvalidValue(f"The form field is longer than {MAX_FIELD_BYTES} bytes.", param=self._name)
        else:
            self._text += data[start:end]

    def _on_part_end(self) -> None:
        if not self._in_file and not self._in_ignored:
            self.on_field(self._name, self._text.decode("utf-8", "replace"))

    def _on_end(self) -> None:
        self._ended = True
