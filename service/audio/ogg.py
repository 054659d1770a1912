"""Chained OGG files (recordings joined end to end, as saved from radio): FFmpeg reads the next only if it is alike.

Source: RFC 3533, page headers.
"""

from collections.abc import Callable, Iterator

_FIRST_PAGE = b"OggS\x00\x02"  # the start of a stream's first page
_HEADER = 27  # bytes before a page's segment table
_PIECE = 1 << 20

ReadAt = Callable[[int, int], bytes]  # (offset, count) → bytes, fewer at the end


def links(read_at: ReadAt, size: int) -> list[tuple[int, int]]:
    """[(start, end), …] in bytes of the recordings in an OGG file; streams that start together count as one."""
    starts, behind = [0], 0
    for at in _first_pages(read_at):
        if at != behind and at > 0:
            starts.append(at)
        page = read_at(at, _HEADER + 255)
        n_segments = page[26] if len(page) >= _HEADER else 0
        behind = at + _HEADER + n_segments + sum(page[_HEADER : _HEADER + n_segments])
    return list(zip(starts, [*starts[1:], size], strict=True))


def _first_pages(read_at: ReadAt) -> Iterator[int]:
    offset = 0
    while len(piece := read_at(offset, _PIECE)) >= len(_FIRST_PAGE):
        found = piece.find(_FIRST_PAGE)
        while found >= 0:
            yield offset + found
            found = piece.find(_FIRST_PAGE, found + 1)
        offset += len(piece) - len(_FIRST_PAGE) + 1
