"""Who gets a place: short jobs behind any number of long ones, clients behind greedy ones; jobs set aside."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from service.errors import ClientGone, Overloaded, QueueFull
from service.http.clients import client_of
from service.transcription.admission import STEPS_S, Admission, current_client, has_room, reserve
from service.transcription.run import Run
from tests.support.waiting import until


class Jobs:
    """Jobs, some of them long, that record their start and run until released."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.begun: list[str] = []
        self.ends: dict[str, threading.Event] = {}

    def submit(self, name: str, *, lasts_s: float = 0.0, n_bytes: int = 0, of: str = "") -> "Callable[[], None]":
        """Add a job; the returned function ends it and waits for its end."""
        end, run = self.ends.setdefault(name, threading.Event()), Run()

        def call() -> None:
            self.begun.append(name)
            if lasts_s:
                self.admission.lasts(run, lasts_s)
                self.begun.append(f"{name} goes on")
            assert end.wait(60)

        token = current_client.set(of)
        try:
            self.admission.submit(run, call, n_bytes=n_bytes)
        finally:
            current_client.reset(token)

        def let_go() -> None:
            end.set()
            run.future.result(60)

        return let_go

    def wait_for(self, *names: str) -> None:
        until(lambda: set(names) <= set(self.begun), f"{names} have begun, of {self.begun}")


@contextmanager
def jobs(n_open: int, queue_length: int = 100) -> Iterator[Jobs]:
    admission = Admission(n_open=n_open, queue_length=queue_length, n_at_once=1)
    made = Jobs(admission)
    try:
        yield made
    finally:
        for end in made.ends.values():
            end.set()
        admission.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wisp-job")]


@pytest.mark.parametrize("n_long", [4, 5, 40])
def test_a_short_job_behind_any_number_of_long_ones_begins_at_once(n_long: int) -> None:
    with jobs(n_open=4) as made:
        ends = [made.submit(f"long {n}", lasts_s=3600.0) for n in range(n_long)]
        until(lambda: sum("goes on" in name for name in made.begun) == 4, "as many long ones as may be are open")
        made.wait_for(*(f"long {n}" for n in range(n_long)))
        until(lambda: len(made.admission._waiting) == n_long - 4, "the others are set aside")
        made.submit("short")
        made.wait_for("short")
        assert made.admission.n_admitted == n_long + 1
        made.ends["short"].set()
        ended: set[int] = set()

        def going() -> list[int]:
            return [n for n in range(n_long) if f"long {n} goes on" in made.begun and n not in ended]

        while len(ended) < n_long:
            until(going, "one goes on")
            for n in going():
                ended.add(n)
                ends[n]()


@pytest.mark.parametrize("behind_s", [90.0, 300.0, 7200.0])
def test_a_shorter_job_behind_many_longer_ones_finds_a_place(behind_s: float) -> None:
    with jobs(n_open=2) as made:
        for n in range(9):
            made.submit(f"long {n}", lasts_s=behind_s)
        made.wait_for(*(f"long {n}" for n in range(9)))
        shorter_s = next(s for s in (300.0, 90.0, 20.0) if s < behind_s)
        end = made.submit("shorter", lasts_s=shorter_s)
        made.wait_for("shorter goes on")
        end()
        made.submit("short", lasts_s=1.0)
        made.wait_for("short goes on")
        assert len(made.admission._open) <= 2 + len(STEPS_S)


def test_jobs_that_wait_for_their_model_leave_their_places_to_those_of_others() -> None:
    with jobs(n_open=2) as made:
        admission, loaded = made.admission, threading.Event()

        def submit(model: str) -> Run:
            run = Run(model)

            def call() -> None:
                with admission.stepped_aside(run):
                    assert loaded.wait(60)

            admission.submit(run, call)
            return run

        try:
            waiting = [submit("b") for _ in range(9)]
            until(lambda: sum(run.is_aside for run in waiting) == 2, "as many as may be open wait for it")
            for n in range(3):
                made.submit(f"short {n}")()
            made.submit("long", lasts_s=3600.0)
            made.wait_for("long goes on")
            assert sum(run in admission._open for run in waiting) == 2, "and no more of them"
            many = [submit(f"model {n % 5}") for n in range(50)]
            most = 2 * (2 + len(STEPS_S))
            until(lambda: len(admission._open) == most, "with many models there is a limit to all")
        finally:
            loaded.set()
        for run in waiting + many:
            run.future.result(60)
            assert not run.is_aside


def test_a_job_that_is_set_aside_ends_with_its_result_and_in_its_turn() -> None:
    with jobs(n_open=1) as made:
        first = made.submit("first", lasts_s=3600.0)
        made.wait_for("first goes on")
        second = made.submit("second", lasts_s=3600.0)
        made.wait_for("second")
        until(lambda: len(made.admission._open) == 1, "it is set aside")
        assert "second goes on" not in made.begun
        first()
        second()
        assert made.begun == ["first", "first goes on", "second", "second", "second goes on"]
        assert made.admission.n_admitted == 0


def test_a_job_that_is_set_aside_and_then_cancelled_frees_its_place() -> None:
    with jobs(n_open=1, queue_length=1) as made:
        made.submit("long", lasts_s=3600.0)
        made.wait_for("long goes on")
        gone = Run()
        made.admission.submit(gone, lambda: made.admission.lasts(gone, 3600.0))
        until(lambda: len(made.admission._waiting) == 1, "it is set aside")
        with pytest.raises(QueueFull):
            made.admission.check_room()
        gone.cancel()
        made.admission.check_room()
        with pytest.raises(ClientGone):
            gone.future.result(0)


def test_closing_ends_jobs_set_aside() -> None:
    with jobs(n_open=1) as made:
        made.submit("long", lasts_s=3600.0)
        made.wait_for("long goes on")
        aside = Run()
        made.admission.submit(aside, lambda: made.admission.lasts(aside, 3600.0))
        until(lambda: len(made.admission._waiting) == 1, "it is set aside")
        made.ends["long"].set()
        made.admission.close()
        assert aside.future.done()


def test_a_small_upload_begins_before_a_large_one_that_came_a_little_earlier() -> None:
    with jobs(n_open=1) as made:
        end = made.submit("first")
        made.wait_for("first")
        made.submit("large", n_bytes=10**9)
        made.submit("small", n_bytes=10**3)
        end()
        made.wait_for("small")
        assert "large" not in made.begun


def test_a_client_with_fewer_open_jobs_goes_first() -> None:
    with jobs(n_open=2) as made:
        ends = [made.submit(f"greedy {n}", of="greedy") for n in range(6)]
        made.submit("modest", of="modest")
        made.wait_for("greedy 0", "greedy 1")
        ends[0]()
        made.wait_for("modest")
        assert made.begun == ["greedy 0", "greedy 1", "modest"]


def test_a_full_queue_keeps_a_few_places_for_clients_that_hold_few() -> None:
    with jobs(n_open=1, queue_length=7) as made:
        for n in range(8):
            made.submit(f"greedy {n}", of="greedy")
        with pytest.raises(QueueFull):
            made.submit("greedy too", of="greedy")
        made.submit("modest", of="modest")
        with pytest.raises(QueueFull):
            made.submit("modest too", of="modest")


@pytest.mark.parametrize("n_places", [1, 2, 3, 8, 144])
def test_one_client_alone_may_have_all_places_but_no_more(n_places: int) -> None:
    assert all(has_room({"a": n}, "a", n_places) for n in range(n_places))
    assert not has_room({"a": n_places}, "a", n_places)
    held = Counter({"a": n_places})
    while has_room(held, "b", n_places):
        held["b"] += 1
    assert held["b"] >= 1 and held.total() <= n_places + reserve(n_places)
    assert n_places < 8 or has_room(held, "c", n_places), "and another finds room"


def test_a_system_without_threads_refuses_a_job_and_takes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with jobs(n_open=1) as made:
        with monkeypatch.context() as patch:

            def none(thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", none)
            refused = Run()
            made.admission.submit(refused, lambda: None)
        with pytest.raises(Overloaded):
            refused.future.result(60)
        made.submit("next")
        made.wait_for("next")


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        ({"client": ("10.0.0.1", 5)}, "10.0.0.1"),
        ({"client": ("2001:db8:1:2:3::4", 5)}, "2001:db8:1:2::/64"),
        ({"client": ("::ffff:10.0.0.1", 5)}, "::ffff:a00:1"),
        ({"client": ("testclient", 5)}, "testclient"),
        ({"client": None}, ""),
        ({"client": ("10.0.0.1", 5), "wisp.key": "ab"}, "key ab"),
    ],
)
def test_a_client_is_its_key_or_its_address(scope: dict[str, object], name: str) -> None:
    assert client_of(scope) == name
