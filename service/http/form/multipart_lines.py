"""Adapts a multipart body to its parser: no preamble, no blanks after the first delimiter, CRLF for a bare LF."""

import re

from service.errors import MalformedForm

MAX_PREAMBLE_BYTES = 64 * 1024
MAX_PADDING = 1000  # blanks between the first delimiter and its line end; the parser takes any number behind others


class LineEnds:
    """Rewrites a body piece by piece: delimiters and header lines get CRLF, the data of parts is unchanged.

    The line end of the first delimiter decides for the whole body.
    """

    def __init__(self, boundary: bytes) -> None:
        self._first = re.compile(rb"(?:^|\n)(--" + re.escape(boundary) + rb")(--|[ \t]{0,%d}\r?\n)" % MAX_PADDING)
        self._delimiter = b"\n--" + boundary
        self._preamble = bytearray()
        self._held = b""  # possibly the start of a delimiter or a line end
        self._has_begun = self._is_bare = self._in_data = False
        self._line_is_empty = True

    def feed(self, piece: bytes) -> bytes:
        """The next piece → the rewritten body as far as it is certain. Raises MalformedForm."""
        if not self._has_begun:
            searched = max(0, len(self._preamble) - len(self._delimiter) - MAX_PADDING - 2)
            self._preamble += piece
            match = self._first.search(self._preamble, searched)
            if match is None:
                if len(self._preamble) > MAX_PREAMBLE_BYTES + len(piece):
                    raise MalformedForm("The multipart/form-data body does not begin with its boundary.")
                return b""
            line_end = match[2].lstrip(b" \t")
            self._has_begun, self._is_bare = True, line_end == b"\n"
            piece = match[1] + line_end + self._preamble[match.end() :]
            self._preamble.clear()
        return self._rewritten(self._held + piece) if self._is_bare else piece

    def _rewritten(self, data: bytes) -> bytes:
        written: list[bytes] = []
        start, self._held = 0, b""
        while start < len(data):
            at = data.find(self._delimiter if self._in_data else b"\n", start)
            if at < 0:
                end = data.rfind(b"\n", max(start, len(data) - len(self._delimiter) + 1)) if self._in_data else -1
                if not self._in_data and data.endswith(b"\r"):
                    end = len(data) - 1
                end = len(data) if end < 0 else end
                self._held = data[end:]
                self._line_is_empty &= end == start
                written.append(data[start:end])
                break
            if self._in_data:
                written += (data[start:at], b"\r\n")
                self._in_data, self._line_is_empty = False, False
            else:
                line = data[start:at].removesuffix(b"\r")
                written += (line, b"\r\n")
                self._in_data = self._line_is_empty and not line
                self._line_is_empty = True
            start = at + 1
        return b"".join(written)
