"""A guest's memory from the host's side: byte ranges at pointers that are checked first."""

import struct

import numpy as np
from numpy.typing import NDArray


class OutOfBounds(Exception):
    """A guest's pointer and length reach past the end of its memory."""


class GuestMemory:
    """The bytes of a guest's memory between two of its instructions.

    This is a view, not a copy, and valid for one host call only: once the guest runs again its memory may have grown.
    Pointers and lengths are the guest's u32s as non-negative Python ints, so their sums cannot wrap around.
    """

    __slots__ = ("_view",)

    def __init__(self, view: memoryview) -> None:
        """`view`: the whole memory, writable, format "B"."""
        self._view = view

    def span(self, pointer: int, length: int) -> memoryview:
        """The `length` bytes at `pointer`, writable, not copied. Raises OutOfBounds."""
        end = pointer + length
        if end > len(self._view):
            raise OutOfBounds(f"{length} bytes at {pointer} are outside a memory of {len(self._view)} bytes")
        return self._view[pointer:end]

    def copy(self, pointer: int, length: int) -> NDArray[np.uint8]:
        """The `length` bytes at `pointer` as a new, aligned (length,) u8 array. Raises OutOfBounds."""
        return np.array(self.span(pointer, length), dtype=np.uint8)

    def u32s(self, pointer: int, count: int) -> tuple[int, ...]:
        """`count` little-endian u32s at `pointer`, which need not be aligned. Raises OutOfBounds."""
        return struct.unpack(f"<{count}I", self.span(pointer, 4 * count))

    def write_u32(self, pointer: int, value: int) -> None:
        """Write `value` at `pointer`, little endian. Raises OutOfBounds."""
        self.span(pointer, 4)[:] = struct.pack("<I", value)
