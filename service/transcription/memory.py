"""Returns freed memory to the system: otherwise a burst of unusual files would stay resident until the server ends.

glibc keeps freed memory for the next allocation, in one arena per thread, where buffers of many sizes leave gaps that
are seldom filled.

malloc_trim returns the gaps, but not the end of a thread's arena. free() returns that, above a threshold that glibc
raises to 64 MiB once something large has been freed; each thread then keeps that much (mallopt(3), M_MMAP_THRESHOLD).
"""

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable
from time import monotonic

PARAMETERS = {"TRIM_THRESHOLD": -1, "MMAP_THRESHOLD": -3}  # malloc.h's M_…
KEPT_BYTES = 4 * 2**20  # at the end of an arena; larger blocks belong to no arena and are returned immediately
EVERY_S = 5.0  # trimming takes about a millisecond, and the next job takes its pages again


def _trim() -> None:
    """Frees what reference cycles hold, then glibc's malloc_trim over all arenas, which another allocator doesn't have.

    Python itself collects cycles only after many allocations, and an idle server makes none: the buffers and open files
    of requests whose clients left would stay, held by their exceptions and connections.
    """
    gc.collect()
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


def freeze() -> None:
    """Exempt what a loaded server consists of from collection: 50,000 objects, looking at which takes 50 ms."""
    gc.collect()
    gc.freeze()


def keep_little() -> None:
    """Make glibc's free() keep at most `KEPT_BYTES` at the end of an arena, whatever was freed before.

    This affects the whole process, so call it when a long-lived one starts. Values that the user set by variables stay.
    """
    if _MALLOC_TRIM is None:
        return
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    for name, parameter in PARAMETERS.items():
        if f"MALLOC_{name}_" not in os.environ and f"glibc.malloc.{name.lower()}=" not in tunables:
            ctypes.CDLL(None).mallopt(parameter, KEPT_BYTES)


def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if function is not None:
        function.argtypes, function.restype = [ctypes.c_size_t], ctypes.c_int
    return function


_MALLOC_TRIM = _malloc_trim()


class Trimmer:
    """Call it when a job has ended: it trims immediately, or `EVERY_S` after the last time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = monotonic()
        self._is_due = False  # a call is scheduled

    def __call__(self) -> None:
        """Trim now, or schedule it."""
        with self._lock:
            wait_s = self._next - monotonic()
            if wait_s > 0:
                if not self._is_due:
                    self._is_due = True
                    timer = threading.Timer(wait_s, self._when_due)
                    timer.daemon, timer.name = True, "wisp-trim"
                    timer.start()
                return
            self._next = monotonic() + EVERY_S
        _trim()

    def _when_due(self) -> None:
        with self._lock:
            self._is_due = False
            self._next = monotonic() + EVERY_S
        _trim()
