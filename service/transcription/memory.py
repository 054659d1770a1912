"""Memory that jobs have freed goes back to the system, or a burst of odd files would be held for as long as the server.

glibc keeps what is freed for the next allocation, in an arena for each thread. Buffers of many sizes leave gaps there
that are seldom filled again.

malloc_trim gives back the gaps, but of a thread's arena not the end. free() does that, from a size on that glibc
raises to 64 MiB once something large has been freed: each thread then keeps as much (mallopt(3), M_MMAP_THRESHOLD).
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable

PARAMETERS = {"TRIM_THRESHOLD": -1, "MMAP_THRESHOLD": -3}  # malloc.h's M_…
KEPT_BYTES = 4 * 2**20  # at the end of an arena; what is larger is no arena's, and goes back at once
EVERY_S = 5.0  # giving back takes a millisecond or so, and the next job takes its pages again


def _trim() -> None:
    """glibc's malloc_trim over all arenas; nothing where there is another allocator."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


def keep_little() -> None:
    """Have glibc's free() keep `KEPT_BYTES` at most at the end of an arena, whatever it has freed before.

    For the whole process, so at the start of one that lasts. What the user has said to glibc by variables stays.
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


def _later(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.name = "wisp-trim"
    timer.start()


class Trimmer:
    """Call it when a job has ended: it gives memory back, at once or `EVERY_S` after the last time. Thread-safe."""

    def __init__(
        self,
        *,
        trim: Callable[[], None] = _trim,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] = _later,
    ) -> None:
        """`trim` does it; `clock`: seconds from some point on; `later` makes a call after so many."""
        self._trim, self._clock, self._later = trim, clock, later
        self._lock = threading.Lock()
        self._next = clock()
        self._is_due = False  # a call is to come

    def __call__(self) -> None:
        """Give back what is free, now or when it is time."""
        with self._lock:
            wait_s = self._next - self._clock()
            if wait_s > 0:
                if not self._is_due:
                    self._is_due = True
                    self._later(wait_s, self._when_due)
                return
            self._next = self._clock() + EVERY_S
        self._trim()

    def _when_due(self) -> None:
        with self._lock:
            self._is_due = False
            self._next = self._clock() + EVERY_S
        self._trim()
