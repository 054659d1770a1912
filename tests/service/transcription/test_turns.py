"""Turns: who works next, what happens to those who leave, and which seconds count as work."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import pytest

from service.errors import ClientGone
from service.transcription.run import Run
from service.transcription.turns import Turns
from tests.support.waiting import until


class Worker:
    """A job of so many pieces in a thread of its own; each piece begins at a border and lasts until it is let go."""

    def __init__(
        self, turns: Turns, name: str, n_pieces: int, step: int, order: list[str], pool: ThreadPoolExecutor
    ) -> None:
        self.began, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.run = Run()
        self._turns, self._step, self._name, self._n_pieces, self._order = turns, step, name, n_pieces, order
        self.ended: Future[None] = pool.submit(self._work)

    def _work(self) -> None:
        with self.run.working(self._turns, self._step):
            for _ in range(self._n_pieces):
                self.run.border()
                self._order.append(self._name)
                self.began.release()
                assert self.go_on.acquire(timeout=60)

    def begin(self) -> "Worker":
        """Wait until it has begun its next piece."""
        assert self.began.acquire(timeout=60)
        return self

    def let_go(self, pieces: int = 1) -> None:
        self.go_on.release(pieces)


class Start(Protocol):
    """Start a job by its name and its number of pieces."""

    def __call__(self, name: str, n_pieces: int, step: int = 0) -> Worker: ...


@contextmanager
def workers(turns: Turns) -> Iterator[tuple[Start, list[str]]]:
    """A way to start jobs; their names, in the order in which pieces were begun."""
    order: list[str] = []
    with ThreadPoolExecutor(16) as pool:
        yield lambda name, n_pieces, step=0: Worker(turns, name, n_pieces, step, order, pool), order


def wait_for(turns: Turns, n_waiting: int) -> None:
    """Until so many jobs wait. They come by themselves."""
    until(lambda: turns.n_waiting >= n_waiting, f"{n_waiting} jobs wait")


def wait_for_next(order: list[str], n_begun: int) -> None:
    """Until more pieces than so many have begun."""
    until(lambda: len(order) > n_begun, "the next piece has begun")


def test_a_short_job_goes_before_the_next_piece_of_long_ones() -> None:
    turns = Turns(2)
    with workers(turns) as (start, order):
        one, two = start("one", 20), start("two", 20)
        one.begin(), two.begin()
        short = start("short", 1)
        wait_for(turns, 1)
        one.let_go()
        short.begin()
        assert turns.n_held == 2
        for worker in (short, one, two):
            worker.let_go(20)
    assert order.index("short") == 2
    assert (turns.n_held, turns.n_waiting) == (0, 0)


def test_turns_alternate_between_the_least_served_and_the_longest_waiting() -> None:
    turns = Turns(1)
    with workers(turns) as (start, order):
        first = start("first", 3).begin()
        others = []
        for n_waiting, name in enumerate(("old", "young", "new"), start=1):
            others.append(start(name, 2))
            wait_for(turns, n_waiting)
        for worker in (first, *others):
            worker.let_go(3)
    # Each job's first piece comes before any other's second, whoever has waited longer.
    assert order == ["first", "old", "young", "new", "first", "old", "young", "new", "first"]


def test_a_stream_of_short_jobs_keeps_no_long_one_waiting_for_ever() -> None:
    turns = Turns(1)
    with workers(turns) as (start, order):
        under_way = {"long": start("long", 4).begin()}
        for n_shorts in range(1, 9):
            under_way[f"short {n_shorts}"] = start(f"short {n_shorts}", 1)
            wait_for(turns, len(under_way) - 1)
            holder = order[-1]
            under_way[holder].let_go()
            if holder != "long":
                del under_way[holder]
            wait_for_next(order, n_shorts)
        for worker in under_way.values():
            worker.let_go(4)
    assert order[:9].count("long") == 3  # while always a shorter one waited
    assert len(order) == 4 + 8


def test_who_waits_alone_never_stops() -> None:
    turns = Turns(1)
    run = Run()
    with run.working(turns):
        for _ in range(5):
            run.border()
        assert turns.n_held == 1


def test_a_job_called_off_while_it_waits_leaves_its_place_to_the_next() -> None:
    turns = Turns(1)
    with workers(turns) as (start, order):
        running = start("running", 1).begin()
        leaving = start("leaving", 1)
        wait_for(turns, 1)
        staying = start("staying", 1)
        wait_for(turns, 2)
        leaving.run.cancel()
        with pytest.raises(ClientGone):
            leaving.ended.result(60)
        assert turns.n_waiting == 1
        running.let_go()
        staying.begin().let_go()
    assert order == ["running", "staying"]
    assert turns.n_held == 0


def test_a_job_called_off_between_its_windows_holds_no_turn_any_more() -> None:
    turns = Turns(1)
    with workers(turns) as (start, _):
        leaving = start("leaving", 2).begin()
        staying = start("staying", 1)
        wait_for(turns, 1)
        leaving.let_go()
        staying.begin()
        leaving.run.cancel()
        with pytest.raises(ClientGone):
            leaving.ended.result(60)
        staying.let_go()
        staying.ended.result(60)
        assert turns.n_held == 0


def test_a_turn_is_given_back_when_its_job_fails() -> None:
    turns, run = Turns(1), Run()
    with pytest.raises(RuntimeError), run.working(turns):
        run.border()
        raise RuntimeError
    assert turns.n_held == 0
    with run.working(turns):
        assert turns.n_held == 1


def test_a_block_within_a_block_goes_on_in_the_same_turn() -> None:
    turns, run = Turns(1), Run()
    with run.working(turns):
        run.border()
        with run.working(turns):
            run.border()
            run.border()
            assert turns.n_held == 1
        assert turns.n_held == 1 and run.is_working
    assert turns.n_held == 0 and not run.is_working


def test_waiting_is_not_work() -> None:
    """A run's clock stands still at a border where another goes first."""
    turns, now, another_has_it, give_up = Turns(1), 0.0, threading.Event(), threading.Event()

    def work() -> None:
        with Run().working(turns):
            another_has_it.set()
            assert give_up.wait(60)

    class Watched(Run):
        def check(self) -> None:
            nonlocal now
            super().check()
            if another_has_it.is_set() and not give_up.is_set():
                now = 100.0
                assert self.elapsed() == 3
                give_up.set()

    run = Watched(clock=lambda: now)
    with ThreadPoolExecutor(1) as pool, run.working(turns):
        run.border()
        now = 3.0
        pool.submit(work)
        wait_for(turns, 1)
        assert run.elapsed() == 3
        run.border()
        assert another_has_it.is_set() and run.elapsed() == 3
        now = 101.0
        assert run.elapsed() == 4


def test_a_short_kind_of_job_goes_before_many_long_ones_that_have_had_no_turn_yet() -> None:
    turns = Turns(1)
    with workers(turns) as (start, order):
        first = start("first", 1).begin()
        long = [start(f"long {n}", 1, step=1) for n in range(4)]
        wait_for(turns, 4)
        short = start("short", 1)
        wait_for(turns, 5)
        first.let_go()
        for worker in (*long, short):
            worker.let_go()
        for worker in (first, *long, short):
            worker.ended.result(60)
    assert "short" in order[1:3]
