"""A guest's streams: blocks in on stdin, JSON lines out on stdout, the end of stderr kept. And a stopped clock."""

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any

from service.guest.lifetime import GuestError
from service.guest.memory import GuestMemory, OutOfBounds

MAX_IOVECS = 1024  # per call: Linux's IOV_MAX
MAX_WRITE_BYTES = 65_536  # taken per fd_write; the guest writes the rest in its next call
MAX_LINE_BYTES = 2 * 2**20  # one event, 2 MiB: the whole text of a day of speech
STDERR_TAIL_BYTES = 4096

STDIN, STDOUT, STDERR = 0, 1, 2


class WasiErrno(IntEnum):
    """The error numbers of wasi_snapshot_preview1 used here."""

    SUCCESS = 0
    BADF = 8
    FAULT = 21
    INVAL = 28
    IO = 29
    NOSYS = 52


class GuestStdio:
    """The streams and the clock of one run, for WASI's calls of the same names.

    Exceptions of the stdin iterable and of `on_event` pass through. Raises GuestError for a malformed line.
    """

    def __init__(self, stdin: Iterable[bytes], on_event: Callable[[dict[str, Any]], None]) -> None:
        """`stdin`: gives the next block only after the guest has read the last. `on_event`: called with each line."""
        self._blocks: Iterator[bytes] = iter(stdin)
        self._block = memoryview(b"")
        self._on_event = on_event
        self._line = bytearray()
        self._stderr = bytearray()

    @property
    def stderr_tail(self) -> str:
        """The end of what the guest wrote to stderr, stripped."""
        return self._stderr.decode("utf-8", "replace").strip()

    def fd_read(self, memory: GuestMemory, fd: int, iovecs: int, n_iovecs: int, out: int) -> WasiErrno:
        """Fill the buffers from the current block of stdin and, once it is used up, the next; 0 bytes at the end."""
        if fd != STDIN:
            return WasiErrno.BADF
        buffers = _buffers(memory, iovecs, n_iovecs, out)
        if isinstance(buffers, WasiErrno):
            return buffers
        if not self._block and any(len(buffer) for buffer in buffers):
            blocks = (memoryview(block).cast("B") for block in self._blocks)
            self._block = next((block for block in blocks if block), self._block)
        n_read = 0
        for buffer in buffers:
            n = min(len(buffer), len(self._block))
            buffer[:n] = self._block[:n]
            self._block = self._block[n:]
            n_read += n
        memory.write_u32(out, n_read)
        return WasiErrno.SUCCESS

    def fd_write(self, memory: GuestMemory, fd: int, iovecs: int, n_iovecs: int, out: int) -> WasiErrno:
        """Take up to MAX_WRITE_BYTES from the buffers; complete lines of stdout become events immediately."""
        if fd not in (STDOUT, STDERR):
            return WasiErrno.BADF
        buffers = _buffers(memory, iovecs, n_iovecs, out)
        if isinstance(buffers, WasiErrno):
            return buffers
        written = bytearray()
        for buffer in buffers:
            written += buffer[: MAX_WRITE_BYTES - len(written)]
        memory.write_u32(out, len(written))
        if fd == STDERR:
            self._stderr += written
            del self._stderr[:-STDERR_TAIL_BYTES]
        else:
            self._take_lines(written)
        return WasiErrno.SUCCESS

    def clock_time_get(self, memory: GuestMemory, _clock: int, _precision: int, out: int) -> WasiErrno:
        """Always 1970: foreign guests that read the time continue, and learn nothing."""
        try:
            memory.span(out, 8)[:] = bytes(8)
        except OutOfBounds:
            return WasiErrno.FAULT
        return WasiErrno.SUCCESS

    def finish(self) -> None:
        """The guest exited successfully: a last line without a newline is an event too."""
        self._emit(self._line)

    def _take_lines(self, written: bytearray) -> None:
        *ends, rest = written.split(b"\n")
        for end in ends:
            self._line += end
            line, self._line = self._line, bytearray()
            self._emit(line)
        self._line += rest
        if len(self._line) > MAX_LINE_BYTES:
            raise GuestError(f"the guest wrote a line of more than {MAX_LINE_BYTES} bytes to stdout")

    def _emit(self, line: bytearray) -> None:
        if not line.strip():
            return
        try:
            event = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise GuestError(f"the guest wrote a line to stdout that isn't JSON: {error}") from None
        if not isinstance(event, dict):
            raise GuestError("the guest wrote a line to stdout that isn't a JSON object")
        self._on_event(event)


def _buffers(memory: GuestMemory, iovecs: int, n_iovecs: int, out: int) -> list[memoryview] | WasiErrno:
    """The buffers of one call, which writes a number to `out`, or what is wrong with them."""
    if n_iovecs > MAX_IOVECS:
        return WasiErrno.INVAL
    try:
        spans = struct.iter_unpack("<II", memory.span(iovecs, 8 * n_iovecs))
        buffers = [memory.span(pointer, length) for pointer, length in spans]
        memory.span(out, 4)
    except OutOfBounds:
        return WasiErrno.FAULT
    return buffers


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} isn't a JSON number")
