"""Guests, good and hostile, each run in a fresh instance: what they say arrives, and what they break ends with them."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from service.guest import Guest, GuestCancelled, GuestError, GuestTimeout
from service.guest_stdio import MAX_LINE_BYTES, STDERR_TAIL_BYTES
from service.wasi_nn import ExecutionContext

LONG_S = 60.0  # a deadline no test should reach
Event = dict[str, Any]
Compile = Callable[..., Guest]

IMPORTS = {
    "fd_write": ("wasi_snapshot_preview1", "(param i32 i32 i32 i32) (result i32)"),
    "fd_read": ("wasi_snapshot_preview1", "(param i32 i32 i32 i32) (result i32)"),
    "proc_exit": ("wasi_snapshot_preview1", "(param i32)"),
    "poll_oneoff": ("wasi_snapshot_preview1", "(param i32 i32 i32 i32) (result i32)"),
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


def run(
    guest: Guest, *stdin: bytes, argument: Mapping[str, Any] | None = None, deadline_s: float = LONG_S
) -> list[Event]:
    """Run to the end; the events."""
    events: list[Event] = []
    guest.run(argument or {}, stdin, {}, events.append, deadline_s=deadline_s)
    return events


def assert_well(guest: Guest) -> None:
    assert run(guest, b".") == [{"event": "done"}]


def test_events_arrive_as_dicts(moody: Guest) -> None:
    assert_well(moody)


def test_leaving_by_exit_0_is_success(moody: Guest) -> None:
    assert run(moody, b"z") == []


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


def test_stdin_is_pulled_as_the_guest_reads(compile_guest: Compile) -> None:
    """Each event leaves before the next block is asked for: nothing is read ahead."""
    seen: list[str] = []

    def blocks() -> Iterator[bytes]:
        for n in range(3):
            seen.append(f"asked for {n}")
            yield json.dumps({"n": n}).encode() + b"\n"

    echo = compile_guest(ECHO)
    echo.run({}, blocks(), {}, lambda event: seen.append(f"got {event['n']}"), deadline_s=LONG_S)
    assert seen == ["asked for 0", "got 0", "asked for 1", "got 1", "asked for 2", "got 2"]


def test_lines_may_come_in_any_pieces(compile_guest: Compile) -> None:
    text = '{"a": "größer"}\n\n{"b": [1, 2]}\r\n{"c": null}'.encode()
    expected = [{"a": "größer"}, {"b": [1, 2]}, {"c": None}]
    echo = compile_guest(ECHO)
    for size in (1, 2, 7, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert run(echo, b"", *pieces, b"") == expected


def test_a_long_block_is_read_in_parts(compile_guest: Compile) -> None:
    event = {"text": "x" * 300_000}
    assert run(compile_guest(ECHO), json.dumps(event).encode() + b"\n") == [event]


def test_the_argument_is_argv_1(compile_guest: Compile) -> None:
    guest = compile_guest(
        module(r"""
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $args_sizes_get (i32.const 16) (i32.const 20)))
    (if (i32.ne (i32.load (i32.const 16)) (i32.const 2)) (then unreachable))
    (drop (call $args_get (i32.const 24) (i32.const 100)))
    (call $say (i32.load (i32.const 28)) (i32.sub (i32.load (i32.const 20)) (i32.const 7)))
    ;; no environment, no directory
    (drop (call $environ_sizes_get (i32.const 16) (i32.const 20)))
    (if (i32.load (i32.const 16)) (then unreachable))
    (if (i32.ne (call $fd_prestat_get (i32.const 3) (i32.const 16)) (i32.const 8)) (then unreachable)))""")
    )
    argument = {"text": 'nul \0, quote ", größer, 🎉', "n": 1.5}
    assert run(guest, argument=argument) == [argument]


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
    guest.run({}, [], {"m/doubling": graph}, events.append, deadline_s=LONG_S, cancelled=cancelled)
    return events


def test_a_guest_computes_through_wasi_nn(compile_guest: Compile) -> None:
    guest, graph = compile_guest(DOUBLE), Doubling()
    assert double(guest, graph) == [{"answer": "B"}]
    assert double(guest, graph) == [{"answer": "B"}], "handles start at 0 in every instance"
    assert graph.closed == 2, "an instance's contexts are freed with it"


def test_a_graph_may_itself_run_the_guest(compile_guest: Compile) -> None:
    guest, inner = compile_guest(DOUBLE), Doubling()
    answers: list[Event] = []
    outer = Doubling(at_compute=lambda: answers.extend(double(guest, inner)))
    assert double(guest, outer) == answers == [{"answer": "B"}]


def test_a_refused_call_is_named_in_the_error(compile_guest: Compile) -> None:
    guest = compile_guest(DOUBLE)
    with pytest.raises(GuestError, match=r"load_by_name.* → not_found: no graph is named 'm/doubling'"):
        run(guest)


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        (b"t", ("unreachable", "inner_step", "outer_step", "main")),
        (b"o", ("out of bounds", "astray")),
        (b"r", ("call stack exhausted", "recurse")),
        (b"g", ("unreachable", "grow")),
        (b"x", ("exit code 3",)),
    ],
)
def test_a_fault_ends_with_its_run_and_names_the_place(moody: Guest, mood: bytes, words: tuple[str, ...]) -> None:
    with pytest.raises(GuestError) as caught:
        run(moody, mood)
    for word in (*words, "stderr: I am not well"):
        assert word in str(caught.value)
    assert_well(moody)


def test_a_guest_that_loops_forever_meets_its_deadline(moody: Guest) -> None:
    with pytest.raises(GuestTimeout, match=r"longer than 0.05 s[\s\S]*hang[\s\S]*I am not well"):
        run(moody, b"h", deadline_s=0.05)
    with pytest.raises(GuestTimeout, match="work"):
        run(moody, b"w", deadline_s=0.05)
    assert_well(moody)


def test_a_hanging_run_leaves_a_healthy_one_alone(moody: Guest) -> None:
    """Four runs hang at the same time as others work: each hanging one ends by itself, all others well."""
    cancelled = [threading.Event() for _ in range(4)]
    ended: list[type[BaseException]] = []

    def hang(event: threading.Event) -> None:
        try:
            moody.run({}, [b"h"], {}, lambda _: None, deadline_s=LONG_S, cancelled=event)
        except GuestError as error:
            ended.append(type(error))

    threads = [threading.Thread(target=hang, args=(event,)) for event in cancelled]
    for thread in threads:
        thread.start()
    for n, event in enumerate(cancelled):
        assert_well(moody)
        event.set()
        threads[n].join(LONG_S)
        assert ended == [GuestCancelled] * (n + 1)
        assert_well(moody)


def test_many_threads_share_one_guest(compile_guest: Compile) -> None:
    echo = compile_guest(ECHO)
    wrong: list[object] = []

    def work(number: int) -> None:
        for n in range(50):
            event = {"from": number, "n": n}
            if run(echo, json.dumps(event).encode()) != [event]:
                wrong.append(event)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_run_cancelled_before_it_starts(moody: Guest) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(GuestCancelled):
        moody.run({}, [b"."], {}, lambda _: pytest.fail("an event"), deadline_s=LONG_S, cancelled=cancelled)
    assert_well(moody)


def test_a_run_cancelled_within_a_compute_makes_no_further_call(compile_guest: Compile) -> None:
    cancelled = threading.Event()
    guest, graph = compile_guest(DOUBLE), Doubling(at_compute=cancelled.set)
    with pytest.raises(GuestCancelled):
        double(guest, graph, cancelled=cancelled)
    assert graph.closed == 1
    assert double(guest, graph) == [{"answer": "B"}]


def test_a_run_cancelled_at_an_event_gets_no_further_one(compile_guest: Compile) -> None:
    cancelled, events = threading.Event(), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        cancelled.set()

    guest = compile_guest(ECHO)
    with pytest.raises(GuestCancelled):
        guest.run({}, [b'{"n": 1}\n', b'{"n": 2}\n'], {}, on_event, deadline_s=LONG_S, cancelled=cancelled)
    assert events == [{"n": 1}]


class ListenerError(Exception):
    """What a caller's own code raises."""


def test_what_on_event_raises_passes_through(moody: Guest) -> None:
    def on_event(event: Event) -> None:
        raise ListenerError

    with pytest.raises(ListenerError):
        moody.run({}, [b"."], {}, on_event, deadline_s=LONG_S)
    assert_well(moody)


def test_what_stdin_raises_passes_through(moody: Guest) -> None:
    def stdin() -> Iterator[bytes]:
        yield b""
        raise ListenerError

    with pytest.raises(ListenerError):
        moody.run({}, stdin(), {}, lambda _: None, deadline_s=LONG_S)
    assert_well(moody)


@pytest.mark.parametrize(
    "line", [b"words", b"[1]", b"{}{}", b'{"a": NaN}', b'{"a": -Infinity}', b"\xff", b"[" * 10_000]
)
def test_stdout_that_is_no_json_object_is_an_error(compile_guest: Compile, line: bytes) -> None:
    echo = compile_guest(ECHO)
    with pytest.raises(GuestError, match="line to stdout that is not"):
        run(echo, line + b"\n")
    with pytest.raises(GuestError, match="line to stdout that is not"):
        run(echo, line)
    assert run(echo, b"{}\n") == [{}]


def test_stdout_without_a_newline_is_bounded(compile_guest: Compile) -> None:
    guest = compile_guest(
        module("""
  (memory (export "memory") 1)
  (func (export "_start") (loop $again (call $say (i32.const 0) (i32.const 65536)) (br $again)))""")
    )
    with pytest.raises(GuestError, match=f"a line of more than {MAX_LINE_BYTES} bytes"):
        run(guest)


def test_stderr_keeps_its_tail(compile_guest: Compile) -> None:
    guest = compile_guest(
        module("""
  (memory (export "memory") 2)
  (data (i32.const 66000) "the end")
  (func (export "_start") (local $n i32)
    (memory.fill (i32.const 100) (i32.const 0x2e) (i32.const 65536))
    (loop $again
      (call $complain (i32.const 100) (i32.const 65536))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 100))))
    (call $complain (i32.const 66000) (i32.const 7))
    (call $proc_exit (i32.const 1)))""")
    )
    with pytest.raises(GuestError) as caught:
        run(guest)
    assert str(caught.value).endswith("." * (STDERR_TAIL_BYTES - 7) + "the end")
    assert len(str(caught.value)) < 2 * STDERR_TAIL_BYTES


@pytest.mark.parametrize("call", ["fd_read", "fd_write"])
@pytest.mark.parametrize(
    ("arguments", "errno"),
    [
        ("(i32.const 9) (i32.const 0) (i32.const 1) (i32.const 8)", 8),  # no such descriptor
        ("(i32.const -1) (i32.const 0) (i32.const 1) (i32.const 8)", 8),
        ("(local.get $fd) (i32.const -8) (i32.const 1) (i32.const 8)", 21),  # buffers out of bounds
        ("(local.get $fd) (i32.const 65532) (i32.const 1) (i32.const 8)", 21),
        ("(local.get $fd) (i32.const 0) (i32.const 1) (i32.const 65533)", 21),  # count out of bounds
        ("(local.get $fd) (i32.const 16) (i32.const 1) (i32.const 8)", 21),  # a buffer that wraps around
        ("(local.get $fd) (i32.const 0) (i32.const 0x20000000) (i32.const 8)", 28),  # buffers whose bytes wrap around
        ("(local.get $fd) (i32.const 0) (i32.const -1) (i32.const 8)", 28),
    ],
)
def test_streams_check_every_pointer(compile_guest: Compile, call: str, arguments: str, errno: int) -> None:
    guest = compile_guest(
        module(f"""
  (memory (export "memory") 1)
  (data (i32.const 0) "\\64\\00\\00\\00\\01\\00\\00\\00")
  (data (i32.const 16) "\\f0\\ff\\00\\00\\ff\\ff\\ff\\ff")
  (func (export "_start") (local $fd i32)
    (local.set $fd (i32.const {int(call == "fd_write")}))
    (call $proc_exit (call ${call} {arguments})))""")
    )
    with pytest.raises(GuestError, match=f"exit code {errno}$"):
        run(guest, b"{}")


def test_sleeping_is_not_supported(compile_guest: Compile) -> None:
    """A host call that waits cannot be interrupted, so there is none."""
    guest = compile_guest(
        module("""
  (memory (export "memory") 1)
  (func (export "_start")
    (call $proc_exit (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 8))))""")
    )
    with pytest.raises(GuestError, match=r"exit code 52$"):
        run(guest)


def test_a_start_section_has_no_memory_to_speak_of_yet(compile_guest: Compile) -> None:
    """Code that runs while the instance is being made is bounded like any other."""
    guest = compile_guest(
        module("""
  (memory (export "memory") 1)
  (func $begin
    (if (i32.ne (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 21))
      (then unreachable))
    (if (i32.ne (call $unload (i32.const 0)) (i32.const 3)) (then unreachable))
    (loop $again (br $again)))
  (start $begin)
  (func (export "_start"))""")
    )
    with pytest.raises(GuestTimeout):
        run(guest, deadline_s=0.05)


def test_memory_beyond_the_cap_is_refused_at_the_start(compile_guest: Compile) -> None:
    text = """(module (memory (export "memory") 32) (func (export "_start")))"""
    assert run(compile_guest(text, memory_bytes=2**21)) == []
    with pytest.raises(GuestError, match="memory minimum size"):
        run(compile_guest(text, memory_bytes=2**20))


def test_an_empty_memory_has_no_bytes(compile_guest: Compile) -> None:
    guest = compile_guest(
        module("""
  (memory (export "memory") 0)
  (func (export "_start")
    (if (i32.ne (call $load_by_name (i32.const 0) (i32.const 0) (i32.const 0)) (i32.const 1)) (then unreachable)))""")
    )
    assert run(guest) == []


GOOD_EXPORTS = '(memory (export "memory") 1) (func (export "_start"))'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('(module (import "env" "f" (func)))', "imports env.f"),
        (f'(module (import "wasi_ephemeral_nn" "g" (func)) {GOOD_EXPORTS})', "wasi_ephemeral_nn::g"),
        (f'(module (import "wasi_ephemeral_nn" "unload" (func)) {GOOD_EXPORTS})', "incompatible import type"),
        ('(module (func (export "_start")))', "no memory named memory"),
        ('(module (memory (export "memory") 1))', "no function _start"),
        ('(module (memory (export "memory") 1) (func (export "_start") (param i32)))', "no function _start"),
        ('(module (memory i64 1) (func (export "_start")))', "memory64"),
        ("not a module", "guest.wat"),
        ("", "guest.wat"),
    ],
)
def test_what_is_no_guest_is_refused_when_compiled(compile_guest: Compile, text: str, words: str) -> None:
    with pytest.raises(GuestError) as caught:
        compile_guest(text)
    assert words in str(caught.value)
    assert "guest.wat cannot be a guest" in str(caught.value)


def test_a_closed_guest_refuses_runs(compile_guest: Compile) -> None:
    guest = compile_guest(MOODY)
    assert_well(guest)
    guest.close()
    guest.close()
    with pytest.raises(RuntimeError, match="closed"):
        run(guest, b".")


def test_a_run_under_way_outlives_close(compile_guest: Compile) -> None:
    guest = compile_guest(ECHO)
    events: list[Event] = []

    def stdin() -> Iterator[bytes]:
        guest.close()
        yield b'{"still": "here"}\n'

    guest.run({}, stdin(), {}, events.append, deadline_s=LONG_S)
    assert events == [{"still": "here"}]


def test_a_run_under_way_meets_its_deadline_after_close(moody: Guest) -> None:
    def stdin() -> Iterator[bytes]:
        moody.close()
        yield b"h"

    with pytest.raises(GuestTimeout):
        moody.run({}, stdin(), {}, lambda _: None, deadline_s=0.05)


def test_instances_leave_nothing_behind(compile_guest: Compile) -> None:
    """3600 instances of 16 MiB, used, unused and trapping: the process stays as it was after the first third."""
    guest = compile_guest(
        module(r"""
  (memory (export "memory") 257)
  (data (i32.const 100) "{}\n")
  (func (export "_start")
    (memory.fill (i32.const 200) (i32.const 1) (i32.const 1))
    (i32.store8 (i32.const 16842000) (i32.const 1))
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 1))
    (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (if (i32.load (i32.const 8)) (then unreachable))
    (call $say (i32.const 100) (i32.const 3)))""")
    )

    def some_runs() -> None:
        for _ in range(400):
            assert run(guest) == [{}]
            guest.instantiate()
            with pytest.raises(GuestError):
                run(guest, b"!")

    some_runs()
    before = resident_bytes()
    some_runs()
    some_runs()
    assert resident_bytes() - before < 4 * 2**20


def resident_bytes() -> int:
    """The process's resident set, from Linux's own account."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc")
    return int(statm.read_text().split()[1]) * 4096
