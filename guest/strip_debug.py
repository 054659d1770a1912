"""Copy a WebAssembly module without its debug sections. Every other section stays, the function names too."""

import sys
from pathlib import Path

CUSTOM_SECTION = 0


def leb128(data: bytes, position: int) -> tuple[int, int]:
    """The unsigned number at `position`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def strip_debug(module: bytes) -> bytes:
    """Module → the same without custom sections named `.debug_…`."""
    kept = [module[:8]]  # magic and version
    start = 8
    while start < len(module):
        size, content = leb128(module, start + 1)
        end = content + size
        name = b""
        if module[start] == CUSTOM_SECTION:
            length, name_start = leb128(module, content)
            name = module[name_start : name_start + length]
        if not name.startswith(b".debug_"):
            kept.append(module[start:end])
        start = end
    return b"".join(kept)


if __name__ == "__main__":
    source, destination = map(Path, sys.argv[1:])
    destination.write_bytes(strip_debug(source.read_bytes()))
