"""Tags around sound: ID3, before or after it, and APE."""

from collections.abc import Callable

ReadAt = Callable[[int, int], bytes]  # (offset, count) → bytes, fewer at the end
MAX_TAGS = 100  # in a row


def behind_tags(read_at: ReadAt, position: int) -> int:
    """The end of any tags at `position`."""
    for _ in range(MAX_TAGS):
        head = read_at(position, 32)
        if head[:3] == b"ID3" and len(head) >= 10:
            position += id3_bytes(head)
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            position += 32 + int.from_bytes(head[12:16], "little")
        elif head[:3] == b"TAG":
            position += 128
        else:
            break
    return position


def id3_bytes(head: bytes) -> int:
    """The size of an ID3v2 tag from its first 10 bytes: a length in 4 × 7 bits, and possibly a footer."""
    length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return 10 + length + (10 if head[5] & 0x10 else 0)
