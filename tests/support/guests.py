"""Small guests in WebAssembly text, good and moody ones, and how tests run them; fixtures that compile them."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from service.guest.runner import Guest
from service.guest.wasi_nn import ExecutionContext

LONG_S = 60.0  # a deadline no test should reach
Event = dict[str, Any]
Compile = Callable[..., Guest]
IMPORTS = {
    "fd_write": ("wasi_snapshot_preview1", "(param i32 i32 i32 i32) (result i32)"),
    "fd_read": ("wasi_snapshot_preview1", "(param i32 i32 i32 i32) (result i32)"),
    "proc_exit": ("wasi_snapshot_preview1", "(param i32)"),
    "poll_oneoff": ("wasi_snapshot_preview1", "(param i32 i32 i32 i32) (result i32)"),
    "clock_time_get": ("wasi_snapshot_preview1", "(param i32 i64 i32) (result i32)"),
    "clock_res_get": ("wasi_snapshot_preview1", "(param i32 i32) (result i32)"),
    "args_sizes_get": ("wasi_snapshot_preview1", "(param i32 i32) (result i32)"),
    "args_get": ("wasi_snapshot_preview1", "(param i32 i32) (result i32)"),
    "environ_sizes_get": ("wasi_snapshot_preview1", "(param i32 i32) (result i32)"),
    "fd_prestat_get": ("wasi_snapshot_preview1", "(param i32 i32) (result i32)"),
    "load_by_name": ("wasi_ephemeral_nn", "(param i32 i32 i32) (result i32)"),
    "init_execution_context": ("wasi_ephemeral_nn", "(param i32 i32) (result i32)"),
    "set_input": ("wasi_ephemeral_nn", "(param i32 i32 i32) (result i32)"),
    "compute": ("wasi_ephemeral_nn", "(param i32) (result i32)"),
    "get_output": ("wasi_ephemeral_nn", "(param i32 i32 i32 i32 i32) (result i32)"),
    "unload": ("wasi_ephemeral_nn", "(param i32) (result i32)"),
}


def module(body: str) -> str:
    """A module's text: `body` with all IMPORTS, `$say` (pointer, length → stdout) and `$complain` (→ stderr)."""
    imports = "".join(f'(import "{home}" "{name}" (func ${name} {of}))\n' for name, (home, of) in IMPORTS.items())
    return f"""(module {imports}
  (func $write (param $fd i32) (param $pointer i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $pointer))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $say (param $pointer i32) (param $length i32)
    (call $write (i32.const 1) (local.get $pointer) (local.get $length)))
  (func $complain (param $pointer i32) (param $length i32)
    (call $write (i32.const 2) (local.get $pointer) (local.get $length)))
  {body})"""


# A guest that does as its stdin says: h hang, w hang in a chain of WASI-NN calls, t trap, o read out of bounds,
# r recurse without end, g grow its memory until it cannot and trap, x exit 3, z exit 0; anything else: one good event.
MOODY = module(
    r"""
  (memory (export "memory") 1)
  (data (i32.const 100) "{\"event\": \"done\"}\n")
  (data (i32.const 200) "I am not well\n")
  (func $hang (loop $again (br $again)))
  (func $work (loop $again (drop (call $compute (i32.const 0))) (br $again)))
  (func $inner_step unreachable)
  (func $outer_step (call $inner_step))
  (func $astray (drop (i32.load (i32.const -4))))
  (func $recurse (param i32) (call $recurse (local.get 0)) (drop (i32.load (local.get 0))))
  (func $grow (loop $again (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable)
  (func $main (export "_start") (local $mood i32)
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 1))
    (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (local.set $mood (i32.load8_u (i32.const 16)))
    (call $complain (i32.const 200) (i32.const 14))
    (if (i32.eq (local.get $mood) (i32.const 0x68)) (then (call $hang)))
    (if (i32.eq (local.get $mood) (i32.const 0x77)) (then (call $work)))
    (if (i32.eq (local.get $mood) (i32.const 0x74)) (then (call $outer_step)))
    (if (i32.eq (local.get $mood) (i32.const 0x6f)) (then (call $astray)))
    (if (i32.eq (local.get $mood) (i32.const 0x72)) (then (call $recurse (i32.const 0))))
    (if (i32.eq (local.get $mood) (i32.const 0x67)) (then (call $grow)))
    (if (i32.eq (local.get $mood) (i32.const 0x78)) (then (call $proc_exit (i32.const 3))))
    (if (i32.eq (local.get $mood) (i32.const 0x7a)) (then (call $proc_exit (i32.const 0))))
    (call $say (i32.const 100) (i32.const 18)))"""
)


class Cancelled(Exception):
    """What stops a run that nobody wants any more."""


class TooLong(Exception):
    """What stops a run at its deadline."""


def limits(seconds: float = LONG_S, cancelled: threading.Event | None = None) -> Callable[[], None]:
    """A run's check: it may take so long, and may be cancelled."""
    end = time.monotonic() + seconds

    def check() -> None:
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        if time.monotonic() >= end:
            raise TooLong

    return check


def run(
    guest: Guest, *stdin: bytes, argument: Mapping[str, Any] | None = None, deadline_s: float = LONG_S
) -> list[Event]:
    """Run to the end; the events."""
    events: list[Event] = []
    guest.run(argument or {}, stdin, {}, events.append, limits(deadline_s))
    return events


def assert_well(guest: Guest) -> None:
    assert run(guest, b".") == [{"event": "done"}]


ECHO = module(r"""
  (memory (export "memory") 2)
  (func (export "_start")
    (loop $again
      (i32.store (i32.const 0) (i32.const 1000))
      (i32.store (i32.const 4) (i32.const 65536))
      (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (if (i32.load (i32.const 8)) (then
        (call $say (i32.const 1000) (i32.load (i32.const 8)))
        (br $again)))))""")


class Doubling:
    """A graph whose context doubles input 0, and may do something else first."""

    def __init__(self, at_compute: Callable[[], None] = lambda: None) -> None:
        self.at_compute = at_compute
        self.closed = 0
        self.tensor: NDArray[Any] | None = None

    def init_execution_context(self, peers: Mapping[int, ExecutionContext]) -> "Doubling":
        return self

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        self.tensor = tensor

    def compute(self) -> None:
        self.at_compute()

    def get_output(self, index: int) -> NDArray[Any]:
        if self.tensor is None:
            raise ValueError("nothing to double")
        return 2 * self.tensor

    def close(self) -> None:
        self.closed += 1


# Doubles the u8 tensor "!" and "\n" (0x21, 0x0a → 0x42, 0x14) and says `{"answer":"B"}`; traps where a call is refused.
DOUBLE = module(r"""
  (memory (export "memory") 1)
  (data (i32.const 100) "m/doubling")
  ;; a tensor record: dims at 120, rank 1, u8, data at 300, 1 byte
  (data (i32.const 200) "\78\00\00\00\01\00\00\00\03\00\00\00\2c\01\00\00\01\00\00\00")
  (data (i32.const 120) "\01\00\00\00")
  (data (i32.const 300) "!")
  (data (i32.const 400) "{\"answer\":\"?\"}\n")
  (func $expect_success (param i32) (if (local.get 0) (then unreachable)))
  (func (export "_start")
    (call $expect_success (call $load_by_name (i32.const 100) (i32.const 10) (i32.const 16)))
    (call $expect_success (call $init_execution_context (i32.load (i32.const 16)) (i32.const 20)))
    (call $expect_success (call $set_input (i32.load (i32.const 20)) (i32.const 0) (i32.const 200)))
    (call $expect_success (call $compute (i32.load (i32.const 20))))
    (call $expect_success (call $get_output
      (i32.load (i32.const 20)) (i32.const 0) (i32.const 411) (i32.const 1) (i32.const 24)))
    (if (i32.ne (i32.load (i32.const 24)) (i32.const 1)) (then unreachable))
    (call $say (i32.const 400) (i32.const 15)))""")


def double(guest: Guest, graph: Doubling, *, cancelled: threading.Event | None = None) -> list[Event]:
    events: list[Event] = []
    guest.run({}, [], {"m/doubling": graph}, events.append, limits(cancelled=cancelled))
    return events


@pytest.fixture
def compile_guest(tmp_path: Path) -> Iterator[Compile]:
    """Compile a guest from its text; it is closed after the test."""
    guests: list[Guest] = []

    def compile_guest(text: str, **settings: Any) -> Guest:
        path = tmp_path / "guest.wat"
        path.write_text(text)
        guests.append(Guest(path, **settings))
        return guests[-1]

    yield compile_guest
    for guest in guests:
        guest.close()


@pytest.fixture
def moody(compile_guest: Compile) -> Guest:
    return compile_guest(MOODY, memory_bytes=2**22)
