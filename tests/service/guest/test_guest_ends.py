"""How runs end before their time: faults, deadlines, cancellation, what their streams raise; and what stays behind."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.guest.runner import Guest, GuestError
from tests.support.guests import (
    DOUBLE,
    ECHO,
    LONG_S,
    MOODY,
    Cancelled,
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
    """And the error has a note of what it was doing."""
    for mood, words in ((b"h", ("hang", "I am not well")), (b"w", ("work",))):
        with pytest.raises(TooLong) as caught:
            run(moody, mood, deadline_s=0.05)
        (note,) = caught.value.__notes__
        assert all(word in note for word in words)
    assert_well(moody)


def test_a_hanging_run_leaves_a_healthy_one_alone(moody: Guest) -> None:
    """Four runs hang at the same time as others work: each hanging one ends by itself, all others well."""
    cancelled = [threading.Event() for _ in range(4)]
    ended: list[type[Exception]] = []

    def hang(event: threading.Event) -> None:
        try:
            moody.run({}, [b"h"], {}, lambda _: None, limits(cancelled=event))
        except Exception as error:
            ended.append(type(error))

    threads = [threading.Thread(target=hang, args=(event,)) for event in cancelled]
    for thread in threads:
        thread.start()
    for n, event in enumerate(cancelled):
        assert_well(moody)
        event.set()
        threads[n].join(LONG_S)
        assert ended == [Cancelled] * (n + 1)
        assert_well(moody)


def test_a_run_cancelled_before_it_starts(moody: Guest) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        moody.run({}, [b"."], {}, lambda _: pytest.fail("an event"), limits(cancelled=cancelled))
    assert_well(moody)


def test_a_run_cancelled_within_a_compute_makes_no_further_call(compile_guest: Compile) -> None:
    cancelled = threading.Event()
    guest, graph = compile_guest(DOUBLE), Doubling(at_compute=cancelled.set)
    with pytest.raises(Cancelled):
        double(guest, graph, cancelled=cancelled)
    assert graph.closed == 1
    assert double(guest, graph) == [{"answer": "B"}]


def test_a_run_cancelled_at_an_event_gets_no_further_one(compile_guest: Compile) -> None:
    cancelled, events = threading.Event(), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        cancelled.set()

    guest = compile_guest(ECHO)
    with pytest.raises(Cancelled):
        guest.run({}, [b'{"n": 1}\n', b'{"n": 2}\n'], {}, on_event, limits(cancelled=cancelled))
    assert events == [{"n": 1}]


class ListenerError(Exception):
    """What a caller's own code raises."""


def test_what_on_event_raises_passes_through(moody: Guest) -> None:
    def on_event(event: Event) -> None:
        raise ListenerError

    with pytest.raises(ListenerError):
        moody.run({}, [b"."], {}, on_event, limits())
    assert_well(moody)


def test_what_stdin_raises_passes_through(moody: Guest) -> None:
    def stdin() -> Iterator[bytes]:
        yield b""
        raise ListenerError

    with pytest.raises(ListenerError):
        moody.run({}, stdin(), {}, lambda _: None, limits())
    assert_well(moody)


def test_memory_beyond_the_cap_is_refused_at_the_start(compile_guest: Compile) -> None:
    text = """(module (memory (export "memory") 32) (func (export "_start")))"""
    assert run(compile_guest(text, memory_bytes=2**21)) == []
    with pytest.raises(GuestError, match="memory minimum size"):
        run(compile_guest(text, memory_bytes=2**20))


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

    guest.run({}, stdin(), {}, events.append, limits())
    assert events == [{"still": "here"}]


def test_a_run_under_way_meets_its_deadline_after_close(moody: Guest) -> None:
    def stdin() -> Iterator[bytes]:
        moody.close()
        yield b"h"

    with pytest.raises(TooLong):
        moody.run({}, stdin(), {}, lambda _: None, limits(0.05))


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
