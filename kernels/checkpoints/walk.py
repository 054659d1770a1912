"""Reading a binary file from front to back, never past its end."""

import mmap
import struct
from pathlib import Path
from typing import Any

from kernels.checkpoints.common import CheckpointError

MAX_NAME_BYTES = 256


class Walk:
    """A mapped file and a place in it; whatever reaches past the end raises CheckpointError."""

    def __init__(self, path: Path, data: bytes | mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def take(self, count: int) -> int:
        """Moves past `count` bytes and returns where they began."""
        begin = self.position
        if count > len(self.data) - begin:
            raise CheckpointError(f"{self.path.name}: is cut short at byte {len(self.data)}")
        self.position += count
        return begin

    def numbers(self, code: str) -> tuple[Any, ...]:
        """What `struct` reads for `code`, little endian."""
        code = f"<{code}"
        return struct.unpack_from(code, self.data, self.take(struct.calcsize(code)))

    def text(self, length: int, limit: int, what: str) -> bytes:
        """`length` bytes, where they may be up to `limit`."""
        if not 0 <= length <= limit:
            raise CheckpointError(f"{self.path.name}: claims {what} of {length} bytes")
        begin = self.take(length)
        return self.data[begin : begin + length]

    def name(self, length: int) -> str:
        """A tensor's name of `length` bytes, without the NUL that may end it."""
        name = self.text(length, MAX_NAME_BYTES, "a name").removesuffix(b"\0").decode("utf-8", "replace")
        if not name.isprintable():
            raise CheckpointError(f"{self.path.name}: has a damaged name before byte {self.position}")
        return name
