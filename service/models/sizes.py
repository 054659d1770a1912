"""The memory that a loaded model takes, and the memory available for models."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path

from kernels.checkpoints.common import Dimensions, expected_shapes

SHARE = 3 / 4  # of the memory, for models; the rest is for uploads, decoding and other programs
HALF, FLOAT = 2, 4  # bytes of a weight, and of a number in computations
WINDOWS = 4  # whose keys and values a transcription holds at its peak, as measured with tiny.en and base
CGROUP = Path("/sys/fs/cgroup")
CGROUP_LIMITS = ("memory.max", "memory.high", "memory/memory.limit_in_bytes")  # version 2's, then version 1's
DRM = Path("/sys/class/drm")
NVML = "libnvidia-ml.so.1"


def loaded_bytes(dims: Dimensions, workers: int) -> int:
    """Bytes of a model in memory with `workers` parallel transcriptions: an estimate on the high side.

    Weights are f16, and the token embedding also exists as int8. A transcription holds keys and values of its audio and
    text, sometimes several (of the previous window, language detection, beams), and scratch space for encoding.
    """
    weights = HALF * sum(prod(shape) for shape in expected_shapes(dims).values()) + dims.n_vocab * dims.n_text_state
    cross = 2 * dims.n_text_layer * dims.n_audio_ctx * dims.n_text_state
    text = 2 * dims.n_text_layer * dims.n_text_ctx * dims.n_text_state
    encoding = 12 * dims.n_audio_ctx * dims.n_audio_state
    return weights + workers * FLOAT * (WINDOWS * cross + 2 * text + encoding)


def machine_bytes(cgroup: Path = CGROUP) -> int:
    """The memory of the machine, or the container's limit if that is lower."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # no such file, or the word max
            found.append(int((cgroup / name).read_text("ascii")))
    return min(limit for limit in found if limit > 0)


def device_bytes() -> int | None:
    """The memory of the largest GPU with its own memory, if its driver reports it; else None."""
    return max([*_amdgpu(), *_nvidia()], default=None)


def _amdgpu() -> Iterator[int]:
    for path in DRM.glob("card*/device/mem_info_vram_total"):
        with suppress(OSError, ValueError):
            yield int(path.read_text("ascii"))


def _nvidia() -> Iterator[int]:
    class Memory(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]  # nvmlMemory_t

    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return
    count, handle, memory = ctypes.c_uint(), ctypes.c_void_p(), Memory()
    if library.nvmlInit_v2():
        return
    try:
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return
        for index in range(count.value):
            if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
                continue
            if not library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
                yield memory.total
    finally:
        library.nvmlShutdown()
