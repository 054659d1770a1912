"""Freed memory goes back to the system, but not too often."""

import ctypes
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

import pytest

from service.transcription import memory
from service.transcription.memory import EVERY_S, PARAMETERS, Trimmer, keep_little
from tests.conftest import ROOT

needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the allocator is not glibc's")

# 64 MB in small pieces, of which every hundredth stays: the freed ones lie between them.
GAPS = """
import ctypes, os
from service.transcription.memory import Trimmer
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
pieces = [libc.malloc(1000) for _ in range(64_000)]
for piece in pieces: ctypes.memset(piece, 1, 1000)
for number, piece in enumerate(pieces):
    if number % 100: libc.free(piece)
before = resident()
Trimmer()()
print(before - resident())
"""

# 30 MB in one piece are freed, so glibc keeps as much; then 25 MB, which malloc_trim would leave.
END = """
import ctypes, os, threading
from service.transcription.memory import Trimmer, keep_little
keep_little()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def use():
    libc.free(libc.malloc(30_000_000))
    piece = libc.malloc(25_000_000)
    ctypes.memset(piece, 1, 25_000_000)
    libc.free(piece)
    done.set()
    end.wait()
done, end = threading.Event(), threading.Event()
before = resident()
threading.Thread(target=use).start()
done.wait()
Trimmer()()
print(resident() - before)
end.set()
"""


@needs_glibc
def test_the_end_of_a_threads_arena_goes_back_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", END], capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(run.stdout) < 10e6


@needs_glibc
def test_gaps_between_used_memory_go_back_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(run.stdout) > 40e6


def test_what_cycles_hold_is_freed() -> None:
    class Held:
        """As an exception and the frame that raised it hold each other."""

    held = Held()
    held.itself = held  # type: ignore[attr-defined]
    gone = weakref.ref(held)
    gc.disable()
    try:
        del held
        assert gone() is not None
        Trimmer()()
        assert gone() is None
    finally:
        gc.enable()


@needs_glibc
@pytest.mark.parametrize(
    "variable, text, left",
    [
        ("UNRELATED", "1", ["TRIM_THRESHOLD", "MMAP_THRESHOLD"]),
        ("MALLOC_TRIM_THRESHOLD_", "1000000", ["MMAP_THRESHOLD"]),
        ("GLIBC_TUNABLES", "glibc.malloc.check=1:glibc.malloc.mmap_threshold=1000000", ["TRIM_THRESHOLD"]),
    ],
)
def test_the_users_glibc_settings_stay(
    variable: str, text: str, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_parameters = list[int]()

    class Libc:
        def mallopt(self, parameter: int, value: int) -> None:
            set_parameters.append(parameter)

    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, text)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Libc())
    keep_little()
    assert set_parameters == [PARAMETERS[name] for name in left]


def test_many_jobs_at_once_trim_once_and_once_more_when_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done, due = 100.0, list[float](), list[tuple[float, Callable[[], None]]]()

    class Timer(threading.Timer):
        def start(self) -> None:
            due.append((self.interval, self.function))

    monkeypatch.setattr(memory, "_trim", lambda: done.append(now))
    monkeypatch.setattr(memory, "monotonic", lambda: now)
    monkeypatch.setattr(threading, "Timer", Timer)
    trimmer = Trimmer()
    for now in (100.0, 100.0, 100.0 + EVERY_S / 2):  # noqa: B007
        trimmer()
    assert done == [100.0]
    ((wait_s, call),) = due
    assert wait_s == EVERY_S
    now = 100.0 + EVERY_S
    call()
    trimmer()  # a job after that burst
    assert done == [100.0, 100.0 + EVERY_S] and len(due) == 2
    now += EVERY_S
    trimmer()
    assert done[-1] == now


def test_a_delayed_trim_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    made = threading.Semaphore(0)
    now = iter((100.0, 100.0, 100.0, 99.95 + EVERY_S, 100.0 + EVERY_S))
    monkeypatch.setattr(memory, "_trim", made.release)
    monkeypatch.setattr(memory, "monotonic", lambda: next(now))
    trimmer = Trimmer()
    trimmer()
    assert made.acquire(timeout=1)
    trimmer()
    assert made.acquire(timeout=30)
