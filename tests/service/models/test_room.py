"""Room in memory: who is unloaded for whom, who waits, and that nobody waits for ever."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from service.errors import ClientGone, ModelInUse, ModelTooLarge
from service.models.room import Limits, Occupant, Room
from tests.support.waiting import until


class Thing:
    """Stands for a model of that size: loaded by its first user, as Model does it."""

    def __init__(self, room: Room, name: str, n_bytes: int) -> None:
        self.room, self.is_loaded, self.n_loads = room, False, 0
        self.occupant = Occupant(name, n_bytes, lambda: self.is_loaded, self._unload)

    def _unload(self) -> bool:
        self.is_loaded = False
        return True

    @contextmanager
    def used(self, length: int = 0, cancelled: threading.Event | None = None) -> Iterator[None]:
        def check() -> None:
            if cancelled is not None and cancelled.is_set():
                raise ClientGone

        with self.room.using(self.occupant, length, check):
            if not self.is_loaded:
                self.is_loaded, self.n_loads = True, self.n_loads + 1
            yield


class User:
    """A thread that uses the thing until `may_end` is set."""

    def __init__(self, thing: Thing, length: int = 0) -> None:
        self.is_in, self.may_end, self.cancelled = threading.Event(), threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(thing, length), daemon=True)
        self._thread.start()

    def _run(self, thing: Thing, length: int) -> None:
        try:
            with thing.used(length, self.cancelled):
                self.is_in.set()
                self.may_end.wait(60)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.may_end.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def room() -> Room:
    return Room(Limits(100, 100))


def waiting(room: Room, n: int) -> None:
    until(lambda: room.n_waiting() == n, f"{n} wait for room")


def test_what_fits_together_stays_together(room: Room) -> None:
    one, other = Thing(room, "one", 50), Thing(room, "other", 50)
    for thing in (one, other, one, other):
        with thing.used():
            pass
    assert (one.n_loads, other.n_loads, room.n_bytes()) == (1, 1, 100)


def test_the_least_recently_used_idle_one_leaves(room: Room) -> None:
    things = [Thing(room, name, 40) for name in "abc"]
    a, b, c = things
    for thing in (a, b, a, c):
        with thing.used():
            pass
    assert [thing.is_loaded for thing in things] == [True, False, True] and room.n_bytes() == 80


def test_one_that_is_in_use_is_waited_for(room: Room) -> None:
    one, other = Thing(room, "one", 60), Thing(room, "other", 60)
    first, second = User(one), None
    assert first.is_in.wait(60)
    second = User(other)
    waiting(room, 1)
    assert not second.is_in.is_set() and not other.is_loaded
    first.end()
    assert second.is_in.wait(60) and not one.is_loaded and room.n_bytes() == 60
    second.end()


def test_a_wait_can_be_cancelled_and_leaves_nothing(room: Room) -> None:
    one, other = Thing(room, "one", 60), Thing(room, "other", 60)
    first = User(one)
    assert first.is_in.wait(60)
    second = User(other)
    waiting(room, 1)
    second.cancelled.set()
    until(lambda: second.error is not None, "the wait has ended")
    assert isinstance(second.error, ClientGone) and room.n_waiting() == 0
    first.end()
    with one.used():
        assert one.n_loads == 1 and not other.is_loaded


def test_newcomers_of_a_loaded_model_wait_behind_those_who_wait_for_room(room: Room) -> None:
    """Else a stream of requests for the one would keep the other out for ever."""
    one, other = Thing(room, "one", 60), Thing(room, "other", 60)
    first = User(one)
    assert first.is_in.wait(60)
    second = User(other)
    waiting(room, 1)
    third = User(one)
    waiting(room, 2)
    first.end()
    assert second.is_in.wait(60) and not third.is_in.is_set()
    second.end()
    assert third.is_in.wait(60) and (one.n_loads, other.n_loads) == (2, 1)
    third.end()


def test_those_who_wait_for_one_model_go_in_together(room: Room) -> None:
    one, other = Thing(room, "one", 60), Thing(room, "other", 60)
    first = User(one)
    assert first.is_in.wait(60)
    users: list[User] = []
    for n, thing in enumerate((other, one, other, one), 1):
        users.append(User(thing))
        waiting(room, n)
    first.end()
    assert users[0].is_in.wait(60) and users[2].is_in.wait(60)
    assert not users[1].is_in.is_set() and not users[3].is_in.is_set()
    users[0].end()
    users[2].end()
    assert users[1].is_in.wait(60) and users[3].is_in.wait(60)
    users[1].end()
    users[3].end()
    assert (one.n_loads, other.n_loads) == (2, 1)


def test_a_shorter_one_need_not_wait_beside_a_longer_one(room: Room) -> None:
    """It keeps nobody waiting: the longer one has the model anyway. Another as long would."""
    one, other = Thing(room, "one", 60), Thing(room, "other", 60)
    long = User(one, length=2)
    assert long.is_in.wait(60)
    second = User(other)
    waiting(room, 1)
    short = User(one, length=1)
    assert short.is_in.wait(60)
    as_long = User(one, length=2)
    waiting(room, 2)
    short.end()
    long.end()
    assert second.is_in.wait(60)
    second.end()
    assert as_long.is_in.wait(60)
    as_long.end()


def test_what_can_never_fit_is_refused_with_the_figures(room: Room) -> None:
    small, large = Thing(room, "small", 10), Thing(room, "large", 123_000_000)
    with small.used():
        pass
    with pytest.raises(ModelTooLarge, match=r"'large' takes about 123 MB.* 0 MB"), large.used():
        pass
    assert small.is_loaded and room.n_waiting() == 0


def test_limits_that_have_to_be_found_out_are_asked_for_by_the_second_model_only() -> None:
    asked: list[None] = []

    def find_out() -> Limits:
        asked.append(None)
        return Limits(75, 100)

    room = Room(find_out)
    first, second, third = Thing(room, "first", 90), Thing(room, "second", 20), Thing(room, "third", 101)
    with first.used():
        assert not asked
    with second.used():
        assert asked == [None] and not first.is_loaded
    with first.used():
        assert not second.is_loaded, "alone it may take all there is"
    with pytest.raises(ModelTooLarge), third.used():
        pass


def test_a_load_that_fails_takes_no_room(room: Room) -> None:
    one, other = Thing(room, "one", 100), Thing(room, "other", 100)
    with pytest.raises(OSError, match="broken"), room.using(one.occupant):
        raise OSError("broken")
    assert room.n_bytes() == 0
    with other.used():
        pass


def test_it_is_unloaded_by_hand_unless_in_use(room: Room) -> None:
    one = Thing(room, "one", 60)
    assert not room.unload(one.occupant)
    with one.used(), pytest.raises(ModelInUse, match="1 transcription;"):
        room.unload(one.occupant)
    assert room.unload(one.occupant) and not one.is_loaded and room.n_bytes() == 0


def test_idle_ones_leave_after_their_time() -> None:
    now = [0.0]
    room = Room(Limits(100, 100), clock=lambda: now[0])
    one, other = Thing(room, "one", 10), Thing(room, "other", 10)
    with one.used():
        pass
    now[0] = 5.0
    with other.used():
        assert room.leaves_in(other.occupant, 10.0) == 10.0 and room.leaves_in(one.occupant, 10.0) == 5.0
        now[0] = 30.0
        room.unload_idle(10.0)
    assert (one.is_loaded, other.is_loaded) == (False, True)


def test_what_is_measured_never_makes_a_model_that_works_too_large() -> None:
    room = Room(Limits(75, 100))
    one, other = Thing(room, "one", 60), Thing(room, "other", 20)
    for measured, counted in ((130, 100), (90, 90), (10, 60)):
        with one.used():
            room.measured(one.occupant, measured)
        assert one.occupant.n_bytes == counted
    room.measured(one.occupant, 130)
    with other.used():
        assert not one.is_loaded, "it leaves, as there is no room beside what was measured"
    with one.used():
        assert one.n_loads == 2 and not other.is_loaded


def test_one_that_is_entered_while_another_leaves_stays(room: Room) -> None:
    """Unloading releases the lock, so that those idle before may no longer be."""
    first, second, large = Thing(room, "first", 40), Thing(room, "second", 40), Thing(room, "large", 90)
    begun, may_end = threading.Event(), threading.Event()

    def unload_slowly() -> bool:
        begun.set()
        assert may_end.wait(60)
        first.is_loaded = False
        return True

    first.occupant.unload = unload_slowly
    with first.used():
        pass
    with second.used():
        pass
    second.occupant.admitted = 10**9  # its users waited when it was loaded
    waits = User(large)
    assert begun.wait(60)
    user = User(second)
    assert user.is_in.wait(60)
    may_end.set()
    until(lambda: not first.occupant.is_in, "the first has left")
    waiting(room, 1)
    assert [second.is_loaded, waits.is_in.is_set()] == [True, False]
    user.end()
    assert waits.is_in.wait(60)
    assert [second.is_loaded, second.n_loads, room.n_bytes()] == [False, 1, 90]
    waits.end()


def test_a_room_takes_a_loaded_model_over(room: Room) -> None:
    other = Room(Limits(100, 100))
    one, large = Thing(other, "one", 60), Thing(room, "large", 60)
    with one.used():
        pass
    room.take_over(one.occupant, other)
    one.room = room
    assert (other.n_bytes(), room.n_bytes()) == (0, 60)
    with large.used():
        assert not one.is_loaded


def test_many_threads_never_take_more_than_there_is() -> None:
    room = Room(Limits(100, 100))
    things = [Thing(room, name, n_bytes) for name, n_bytes in (("a", 60), ("b", 50), ("c", 40), ("d", 100))]
    most: list[int] = []

    def work(number: int) -> None:
        for step in range(25):
            thing = things[(number * 7 + step * 3) % len(things)]
            with thing.used(length=step % 3):
                most.append(sum(other.occupant.n_bytes for other in things if other.is_loaded))
                assert thing.is_loaded

    with ExitStack() as stack:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join, 60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(most) == 200 and max(most) <= 100
