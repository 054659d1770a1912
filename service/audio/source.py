"""The uploaded bytes as a file for FFmpeg, and the error for files without sound."""

import io
import os


class Refused(Exception):
    """The file has no usable sound: one sentence for the user."""


class Source:
    """A file for PyAV from an offset of a descriptor. Keeps its own position, as others may share the descriptor."""

    def __init__(self, fd: int, start: int) -> None:
        self._fd, self.start, self._position = fd, start, 0
        self._end = max(start, os.fstat(fd).st_size)
        self.failure: OSError | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self._end - self.start

    def show(self, start: int, end: int) -> None:
        """Show only the bytes from `start` to `end` of the descriptor from now on."""
        self.start, self._end, self._position = start, end, 0

    def read(self, count: int) -> bytes:
        data = self.read_at(self._position, count)
        self._position += len(data)
        return data

    def read_at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes. Keeps an OSError in `failure`, because FFmpeg replaces it with its own error."""
        try:
            return os.pread(self._fd, max(0, min(count, self.size - position)), self.start + position)
        except OSError as error:
            self.failure = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position
