"""Decoding in another process, from the service's side: starts it with a file, reads its pipe, and ends it.

One fork server serves the whole service. It starts with the first file or at warm_up(), and is restarted if it dies.
Its output is untrusted: lengths are checked before anything is allocated.
"""

import atexit
import contextlib
import importlib.util
import io
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from service.audio import decoder_process as protocol
from service.audio.frames import FORMATS
from service.audio.sandbox import Limits
from service.audio.wav import Floats
from service.errors import DecoderLost, UnreadableAudio

log = logging.getLogger("wisp")

TICK_MS = 50  # how often a reader checks whether its samples are still wanted
SMALL_BYTES = 1 << 20  # files up to this size may be in memory only, so they are copied for the process
LOST_BYTES = 1024  # smaller losses are not logged
MAX_MESSAGE_BYTES = 64 << 20
MAX_SENTENCE = 300  # characters of an error message
FORKS = sys.platform == "linux"  # macOS's system libraries break in a fork
MODULE = "service.audio.decoder_process"
BOOT = f"import sys; sys.path += sys.argv[1].split(':'); from {MODULE} import main; main(*sys.argv[2:])"
TIME_IS_UP = (signal.SIGPROF, signal.SIGXCPU)


def _command(*arguments: str) -> list[str]:
    """Python that can import only this package and PyAV."""
    av = importlib.util.find_spec("av")
    assert av is not None and av.origin is not None
    folders = dict.fromkeys([str(Path(__file__).parents[2]), str(Path(av.origin).parent.parent)])
    return [sys.executable, "-I", "-S", "-c", BOOT, ":".join(folders), *arguments]


def _spawn(command: list[str], *fds: int) -> "subprocess.Popen[bytes]":
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=null, stdout=null, stderr=null, pass_fds=fds, env={}, cwd="/")


class _Server:
    """The fork server, from this process's side. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = count()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> socket.socket:
        """The running server's socket; starts it if needed."""
        with self._lock:
            if self._control is None or self._process is None or self._process.poll() is not None:
                self._drop()
                self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with other:
                    self._process = _spawn(_command("serve", str(other.fileno())), other.fileno())
            return self._control

    def fork(self, file: int, out: int, start: int, limits: Limits) -> int:
        """Have a file decoded; returns the number to end it by. Raises OSError."""
        number = os.getpid() << 32 | next(self._numbers)  # unique even in a fork of this process
        try:
            self._send((protocol.START, number, start, *limits), file, out)
        except OSError:  # it has died, and its processes with it
            self.start()
            self._send((protocol.START, number, start, *limits), file, out)
        return number

    def end(self, number: int) -> int | None:
        """Kill the process if it still runs; returns its exit code, None if the server or the process was gone."""
        read, write = os.pipe()
        with open(read) as answer:  # noqa: PTH123
            try:
                self._send((protocol.END, number, 0, 0, 0.0, 0), write)
            except OSError:
                return None
            finally:
                os.close(write)
            status = answer.read()
        return os.waitstatus_to_exitcode(int(status)) if status else None

    def _send(self, request: tuple[Any, ...], *fds: int) -> None:
        socket.send_fds(self.start(), [protocol.REQUEST.pack(*request)], fds)

    def _drop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.wait()
        self._control = self._process = None

    def close(self) -> None:
        """End the server and its forks. Idempotent."""
        with self._lock:
            self._drop()


_server = _Server()
atexit.register(_server.close)


def warm_up() -> None:
    """Start the fork server, so that the first file doesn't wait for it."""
    if FORKS:
        _server.start()


class Decoder:
    """One file, decoded by its own process. Raises what decode() raises, and DecoderLost."""

    def __init__(self, file: BinaryIO, start: int, limits: Limits, on_wait: Callable[[], None]) -> None:
        """Start at offset `start` and wait for the format. `on_wait` is called while waiting and may raise to stop."""
        self._on_wait = on_wait
        self.lost = ""  # what could not be decoded, in words; known at the end
        self._end: Callable[[], int | None] = lambda: None
        self._pipe, out = os.pipe()
        try:
            try:
                with _shared(file) as fd:
                    self._begin(fd, out, start, limits)
            finally:
                os.close(out)
            self._poll = select.poll()
            self._poll.register(self._pipe, select.POLLIN)
            self.format, codec = self._message(protocol.BEGINS).decode().split(",")
        except BaseException:
            self.close()
            raise
        self.is_float = codec.startswith("pcm_f")

    def _begin(self, fd: int, out: int, start: int, limits: Limits) -> None:
        try:
            if FORKS:
                number = _server.fork(fd, out, start, limits)
                self._end = lambda: _server.end(number)
            else:
                numbers = (fd, out, start, *limits)
                process = _spawn(_command("once", *(str(number) for number in numbers)), fd, out)
                self._end = lambda: _killed(process)
        except OSError as error:
            raise DecoderLost from error

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """(Hz, (n, channels) f32), … in order."""
        while data := self._message(protocol.BLOCK):
            name, rate, channels, n, k = protocol.SHAPE.unpack_from(data)
            name = name.rstrip(b"\0").decode("ascii", "replace")
            code, width, silence, full_scale = FORMATS.get(name.removesuffix("p"), ("B", 0, 0, 0))
            if not n * channels * width or len(data) != protocol.SHAPE.size + k * n * channels * width:
                raise self._broken("a block of wrong size")
            values = _as_floats(np.frombuffer(data, code, offset=protocol.SHAPE.size), silence, full_scale)
            if name.endswith("p"):
                values = values.reshape(k, channels, n).transpose(0, 2, 1)
            yield rate, values.reshape(k * n, channels)

    def _message(self, expected: bytes) -> bytes:
        """The next message's content; empty at the regular end. Raises the error that any other message reports."""
        kind, length = protocol.HEAD.unpack(self._read(protocol.HEAD.size))
        if length > MAX_MESSAGE_BYTES:
            raise self._broken(f"a message of {length} bytes")
        data = self._read(length)
        if kind == expected:
            return data
        if kind == protocol.ENDS:
            lost_bytes, lost_s = data.decode().split(",")
            if int(lost_bytes) >= LOST_BYTES or float(lost_s):
                self.lost = f"{int(lost_bytes)} bytes cannot be decoded, {float(lost_s):g} s are missing"
            return b""
        if kind == protocol.DISK:
            raise OSError(*json.loads(data))
        if kind == protocol.REFUSED:
            raise UnreadableAudio(data.decode("utf-8", "replace")[:MAX_SENTENCE])
        raise self._broken(data.decode("utf-8", "replace") if kind == protocol.CRASHED else f"a message {kind!r}")

    def _read(self, count: int) -> bytes:
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            while not self._poll.poll(TICK_MS):
                self._on_wait()
            n = os.readv(self._pipe, [rest])
            if n == 0:
                raise self._died()
            rest = rest[n:]
        return bytes(data)

    def _died(self) -> Exception:
        end, self._end = self._end, lambda: None
        code = end()
        if code in (None, -signal.SIGKILL, protocol.NOT_BEGUN):
            log.warning("a decoding process failed to start or was killed: is memory short?")
            return DecoderLost()
        if code < 0 and -code in TIME_IS_UP:
            return UnreadableAudio("The file takes too long to decode: it is damaged or malicious.")
        return self._broken(f"exit code {code}")

    def _broken(self, how: str) -> Exception:
        log.warning("a file broke its decoding process: %s", how)
        return UnreadableAudio("The file cannot be decoded: the decoder failed on it.")

    def close(self) -> None:
        """End the process. Idempotent."""
        end, self._end = self._end, lambda: None
        end()
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            os.close(pipe)


def _killed(process: "subprocess.Popen[bytes]") -> int:
    process.kill()
    return process.wait()


@contextlib.contextmanager
def _shared(file: BinaryIO) -> Iterator[int]:
    """A file descriptor for another process: the file's own, or a copy's if the file is small or has no descriptor."""
    size = file.seek(0, io.SEEK_END)
    with contextlib.suppress(io.UnsupportedOperation):
        if size > SMALL_BYTES:
            file.flush()
            yield file.fileno()
            return
    file.seek(0)
    with os.fdopen(os.memfd_create("wisp"), "wb") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        yield copy.fileno()


def _as_floats(raw: "NDArray[np.generic]", silence: int, full_scale: int) -> Floats:
    """Samples of any type as f32 with full scale 1."""
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, then silence
        values = raw.astype(np.float32)
    return values if full_scale == 1 else (values - np.float32(silence)) / np.float32(full_scale)
