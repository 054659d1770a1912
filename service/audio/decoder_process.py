"""The decoding program: a server that forks a sandboxed process for each file.

It shares nothing with the service: it has FFmpeg loaded, an empty environment, and one socket for requests. A fork
keeps the file, read-only, and a pipe for its samples. Where forking is unsafe (macOS), the command `once` decodes one
file in a new process.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import traceback
from contextlib import suppress
from typing import NoReturn

from service.audio.sandbox import Limits, confine, still_alive

FILE, OUT = 3, 4  # descriptors of a decoding process
NOT_BEGUN = os.EX_OSERR  # exit status of a process that could not start
MAX_DESCRIPTORS = 1024  # more than a server has
START, END = 1, 2  # requests to the server
REQUEST = struct.Struct("<BQQQdQ")  # START or END, the file's number, the offset to start at, Limits
# What a process writes: kind, length, and that many bytes.
HEAD = struct.Struct("<cI")
BEGINS, BLOCK, ENDS, REFUSED, DISK, CRASHED = b"S", b"B", b"E", b"R", b"D", b"X"
SHAPE = struct.Struct("<8sIHII")  # before a block's samples: format, Hz, channels, samples per frame, frames
BLOCK_BYTES = 1 << 17


class Output:
    """Writes one process's messages; collects frames of one shape into blocks."""

    def __init__(self, fd: int, limits: Limits) -> None:
        self._fd, self._limits = fd, limits
        self._shape: tuple[bytes, int, int, int] | None = None
        self._frames: list[bytes] = []
        self._n_planes = self._n_bytes = 0

    def is_alive(self) -> None:
        """Report that something was decoded, even if it gives no sound yet."""
        still_alive(self._limits)

    def frame(self, format: str, rate: int, n: int, planes: list[bytes], channels: int) -> None:
        """Add a decoded frame: `n` samples of each channel."""
        self.is_alive()
        shape = (format.encode(), rate, channels, n)
        if shape != self._shape or self._n_bytes >= BLOCK_BYTES:
            self.flush()
            self._shape, self._n_planes = shape, len(planes)
        self._frames += planes
        self._n_bytes += sum(len(plane) for plane in planes)

    def flush(self) -> None:
        """Write the collected block."""
        if self._shape is not None and self._frames:
            samples = b"".join(self._frames)
            self.send(BLOCK, SHAPE.pack(*self._shape, len(self._frames) // self._n_planes), samples)
        self._frames, self._n_bytes = [], 0

    def send(self, kind: bytes, *parts: bytes) -> None:
        """Write one message."""
        data = HEAD.pack(kind, sum(len(part) for part in parts)) + b"".join(parts)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def decode(file: int, out: int, start: int, limits: Limits) -> NoReturn:
    """Decode one file in this process, then exit."""
    from service.audio import ffmpeg
    from service.audio.source import Refused, Source

    status = 0
    output = Output(out, limits)
    try:
        source = Source(file, start)
        confine(limits)
        still_alive(limits)
        try:
            ffmpeg.decode(source, output)
        except Refused as error:
            output.send(REFUSED, str(error).encode())
        except MemoryError:
            output.send(
                REFUSED,
                b"The file takes more memory to decode than is allowed: it is damaged, made to, "
                b"or has more than %d tracks." % ffmpeg.MAX_STREAMS,
            )
        except OSError:
            if source.failure is None:
                raise
            output.send(DISK, json.dumps([source.failure.errno, source.failure.strerror]).encode())
    except BrokenPipeError:
        pass
    except BaseException:
        status = 1
        with suppress(BaseException):
            output.send(CRASHED, traceback.format_exc().encode())
    os._exit(status)


def serve(control: socket.socket) -> None:
    """Fork for each START; on END kill that process if it still runs and write its wait status to a pipe sent along."""
    processes: dict[int, int] = {}
    while True:
        message, fds, _, _ = socket.recv_fds(control, REQUEST.size, 2)
        if not message:
            return
        kind, number, start, *limits = REQUEST.unpack(message)
        if kind == START:
            with suppress(OSError):  # no process available: the file's pipe ends immediately
                processes[number] = os.fork() or _run(fds, start, Limits(*limits))
        elif number in processes:
            pid = processes.pop(number)
            os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is not reused
            _, status = os.waitpid(pid, 0)
            for fd in fds:
                os.write(fd, str(status).encode())
        for fd in fds:
            os.close(fd)


def _run(fds: list[int], start: int, limits: Limits) -> NoReturn:
    """Decode in this newly forked process, which always exits here and never becomes a second server."""
    try:
        _become(*fds)
        decode(FILE, OUT, start, limits)
    finally:
        os._exit(NOT_BEGUN)


def _become(file: int, out: int) -> None:
    """Keep these two descriptors and stdio, which is /dev/null."""
    file, out = (fcntl.fcntl(fd, fcntl.F_DUPFD, OUT + 1) for fd in (file, out))
    os.dup2(file, FILE)
    os.dup2(out, OUT)
    os.closerange(OUT + 1, MAX_DESCRIPTORS)


def main(command: str, *numbers: str) -> None:
    """`serve FD`, or `once FILE OUT START MEMORY STALL CPU`."""
    from service.audio import ffmpeg

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the service
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as adjustment:  # noqa: PTH123
        adjustment.write("1000")  # when memory is short, the kernel kills decoding before the service
    ffmpeg.set_up()
    ffmpeg.codecs()  # loaded once for all forks
    if command == "serve":
        serve(socket.socket(fileno=int(numbers[0])))
    else:
        file, out, start, memory, stall, cpu = numbers
        decode(int(file), int(out), int(start), Limits(int(memory), float(stall), int(cpu)))
