"""Guests, each run in a fresh instance: what they read, say and compute arrives; what is no guest is refused."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.guest.runner import IDLE_LANES, Guest, GuestError
from service.guest.stdio import MAX_LINE_BYTES, STDERR_TAIL_BYTES
from tests.support.guests import (
    DOUBLE,
    ECHO,
    Compile,
    Doubling,
    Event,
    TooLong,
    assert_well,
    double,
    limits,
    module,
    run,
)


def test_events_arrive_as_dicts(moody: Guest) -> None:
    assert_well(moody)


def test_leaving_by_exit_0_is_success(moody: Guest) -> None:
    assert run(moody, b"z") == []


def test_stdin_is_pulled_as_the_guest_reads(compile_guest: Compile) -> None:
    """Each event leaves before the next block is asked for: nothing is read ahead."""
    seen: list[str] = []

    def blocks() -> Iterator[bytes]:
        for n in range(3):
            seen.append(f"asked for {n}")
            yield json.dumps({"n": n}).encode() + b"\n"

    echo = compile_guest(ECHO)
    echo.run({}, blocks(), {}, lambda event: seen.append(f"got {event['n']}"), limits())
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


@pytest.mark.parametrize(
    "line", [b"words", b"[1]", b"{}{}", b'{"a": NaN}', b'{"a": -Infinity}', b"\xff", b"[" * 10_000]
)
def test_stdout_that_is_no_json_object_is_an_error(compile_guest: Compile, line: bytes) -> None:
    echo = compile_guest(ECHO)
    with pytest.raises(GuestError, match="line to stdout that isn't"):
        run(echo, line + b"\n")
    with pytest.raises(GuestError, match="line to stdout that isn't"):
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
    with pytest.raises(TooLong):
        run(guest, deadline_s=0.05)


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


CLOCK = module(r"""
  (memory (export "memory") 1)
  (data (i32.const 100) "{\"event\": \"no time\"}\n")
  (func (export "_start")
    (i64.store (i32.const 16) (i64.const -1))
    (if (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 16)) (then unreachable))
    (if (i64.ne (i64.load (i32.const 16)) (i64.const 0)) (then unreachable))
    (if (i32.ne (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const -4)) (i32.const 21)) (then unreachable))
    (if (i32.ne (call $clock_res_get (i32.const 0) (i32.const 16)) (i32.const 52)) (then unreachable))
    (call $say (i32.const 100) (i32.const 21)))""")


def test_a_guest_cannot_read_the_clock(compile_guest: Compile) -> None:
    assert run(compile_guest(CLOCK)) == [{"event": "no time"}]


def address_space() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("no /proc")
    return int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_guests_reserve_little_address_space_and_leave_few_behind(compile_guest: Compile) -> None:
    guest = compile_guest(DOUBLE)
    at_work, go_on = threading.Barrier(9), threading.Event()

    def wait() -> None:
        at_work.wait(60)
        assert go_on.wait(60)

    before, files = address_space(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    threads = [threading.Thread(target=double, args=(guest, Doubling(wait))) for _ in range(8)]
    for thread in threads:
        thread.start()
    at_work.wait(60)
    assert address_space() - before < 2**30, "wasmtime's own default is 4 GiB for each"
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(guest._idle) == IDLE_LANES
    assert len(os.listdir("/proc/self/fd")) <= files + 2 * IDLE_LANES  # noqa: PTH208
