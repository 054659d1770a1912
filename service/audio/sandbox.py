"""Confines a process before it reads untrusted bytes: limited memory and time; no new file, socket, process or signal.

On Linux on x86-64 and 64-bit ARM, seccomp also blocks every system call that decoding doesn't need; containers and
ordinary users may use it. Elsewhere only the resource limits apply.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from typing import NamedTuple

MIB = 2**20
ADDRESSES = 4  # times the memory: libraries, stack, and reserved but unused addresses
_PDEATHSIG, _SECCOMP, _NO_NEW_PRIVS = 1, 22, 38  # of prctl(2)
_FILTER = 2  # a mode of seccomp(2)
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF: load a word of the call, compare it, return a verdict
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
# machine → (AUDIT_ARCH_…, the column in _CALLS)
_MACHINES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}
# All system calls that decoding needs, with their numbers on x86-64 and 64-bit ARM.
_CALLS = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, mremap 25 216, madvise 28 233,
setitimer 38 103, getpid 39 172, exit 60 93, gettimeofday 96 169, getrusage 98 165, sigaltstack 131 132, futex 202 98,
restart_syscall 219 128, clock_gettime 228 113, exit_group 231 94, getrandom 318 278
"""


class Limits(NamedTuple):
    """Limits for decoding one file."""

    memory_bytes: int = 96 * MIB
    stall_s: float = 3.0  # CPU seconds without producing a sample
    cpu_s: int = 600  # total CPU seconds


def confine(limits: Limits) -> None:
    """Confine this process permanently: it can read and write what is open, and nothing else."""
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_AS, ADDRESSES * limits.memory_bytes),
        (resource.RLIMIT_NOFILE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))  # a signal that tells why, then SIGKILL
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the default action ends the process
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        _filter_calls(libc)


def still_alive(limits: Limits) -> None:
    """A sample was decoded: allow `stall_s` of CPU time until the next."""
    signal.setitimer(signal.ITIMER_PROF, limits.stall_s)


def _filter_calls(libc: ctypes.CDLL) -> None:
    machine = os.uname().machine
    if machine not in _MACHINES:
        return
    architecture, column = _MACHINES[machine]
    numbers = [int(row.split()[column]) for row in _CALLS.split(",")]
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_LOAD, 0, 0, 0)]
    code += [(_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    code += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(program)))
    libc.prctl(_SECCOMP, _FILTER, header, 0, 0)  # on a kernel without seccomp only the resource limits apply
