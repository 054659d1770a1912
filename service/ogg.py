"""Chained OGG files, one recording after another as radio streams are saved: libsndfile reads the first one only.

Source: RFC 3533, page headers.
"""

from collections.abc import Callable

MAX_LINKS = 1000
_HEADER = 27  # bytes before a page's segment table
_BEGINS_STREAM = 2  # flag of a stream's first page

Read = Callable[[int, int], bytes]  # (offset, count) → bytes, fewer at the end


def links(read: Read, size: int) -> list[tuple[int, int]]:
    """[(start, end), …] in bytes of the recordings in an OGG file, the last one to the file's end.

    One begins where streams begin after pages of others (several may begin together). Pages after a damage are not
    looked at: they belong to the last recording found.
    """
    starts: list[int] = []
    offset, in_head = 0, False
    while offset < size and len(starts) < MAX_LINKS:
        page = read(offset, _HEADER + 255)
        if len(page) < _HEADER or not page.startswith(b"OggS"):
            break
        begins = bool(page[5] & _BEGINS_STREAM)
        if begins and not in_head:
            starts.append(offset)
        in_head = begins
        n_segments = page[26]
        offset += _HEADER + n_segments + sum(page[_HEADER : _HEADER + n_segments])
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    return list(zip(starts, [*starts[1:], size], strict=True))
