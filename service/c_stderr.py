"""Silence for C libraries that print: mpg123, inside libsndfile, comments on every odd frame of an MP3 on stderr."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_saved: int | None = None


def _c_streams() -> tuple[ctypes.c_void_p, int] | None:
    """C's `stderr` variable and a FILE* on /dev/null; None where this C library has no such variable."""
    try:
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        variable = ctypes.c_void_p.in_dll(libc, "stderr")
        null = libc.fopen(b"/dev/null", b"w")
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return (variable, null) if null else None


_STREAMS = _c_streams()


@contextmanager
def c_stderr_closed() -> Iterator[None]:
    """Drop what C code prints through `stderr` inside the block, in any thread. Python's own output is untouched."""
    global _inside, _saved
    if _STREAMS is None:
        yield
        return
    variable, null = _STREAMS
    with _lock:
        _inside += 1
        if _inside == 1:
            _saved, variable.value = variable.value, null
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                variable.value = _saved
