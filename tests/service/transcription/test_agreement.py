"""Which tokens settle, in windows whose beginning is cut off."""

from typing import Any, cast

import pytest

from service.transcription.agreement import Agreement
from tests.support.live import FakeTokenizer, T


def agreement() -> Agreement:
    return Agreement(cast(Any, FakeTokenizer()))


def test_what_two_passes_hear_alike_is_settled() -> None:
    agreed = agreement()
    assert agreed.take([T, 1, 2, 3], "en") == ()
    assert agreed.take([T, 1, 2, 4, 5], "en") == (1, 2)
    found = [*agreed.settled, *agreed.rest]
    assert found == [T, 1, 2, 4, 5]
    assert agreed.take([T, 1, 2, 4, 5, 6], "en") == (4, 5)
    assert agreed.take([T, 1, 2, 4, 5], "en") == ()


def test_times_may_change_between_passes_and_the_last_ones_stay() -> None:
    agreed = agreement()
    agreed.take([T, 1, T + 50, T + 50, 2, T + 90], "en")
    assert agreed.take([T, 1, T + 60, T + 60, 2, 3, T + 120], "en") == (1, 2)
    assert agreed.settled == (T, 1, T + 60, T + 60, 2)


@pytest.mark.parametrize(
    ("before", "now", "language", "settled"),
    [
        ([1, 2, 60], [1, 2, 61], "en", (1,)),  # " w2w60", then " w2w61"
        ([1, 2], [1, 2, 60], "en", (1,)),
        ([1, 2, 60], [1, 2, 60, 3], "en", (1, 2, 60)),
        ([60, 61], [60, 61, 62], "ja", (60, 61)),
        ([60, 80], [60, 80, 81], "ja", (60,)),  # half a character
        ([60, 80, 81, 70], [60, 80, 81, 71], "ja", (60, 80, 81)),
        ([], [1], "en", ()),
        ([1], [], "en", ()),
    ],
)
def test_only_whole_words_settle(before: list[int], now: list[int], language: str, settled: tuple[int, ...]) -> None:
    agreed = agreement()
    agreed.take([T, *before], language)
    assert agreed.take([T, *now], language) == settled


def test_settled_segments_are_cut_off_and_later_times_count_from_there() -> None:
    agreed = agreement()
    heard = [T, 1, T + 50, T + 60, 2, T + 100, T + 110, 3, 4, T + 150]
    agreed.take(heard, "en")
    assert agreed.cut() == 0
    agreed.take(heard, "en")
    assert agreed.cut() == pytest.approx(2.0)
    assert agreed.settled == (T + 10, 3)
    assert agreed.cut() == 0
    assert agreed.take([T + 10, 3, T + 50, T + 50, 4], "en") == ()


def test_the_last_timestamp_is_not_after_the_audio() -> None:
    for settled, ended in (
        ((T, 1, T + 100), (T, 1, T + 75)),
        ((T, 1, T + 80, T + 90), (T, 1, T + 80, T + 80)),
        ((T + 100,), (T + 75,)),
        ((T, 1), (T, 1)),
        ((), ()),
    ):
        agreed = agreement()
        agreed.settled = settled
        agreed.end_at(1.5)
        assert agreed.settled == ended


def test_a_full_window_ends_as_whispers_do() -> None:
    for heard, new, seconds in (
        ([T, 1, T + 50, T + 50, 2, T + 100, T + 100, 3], (1, 2), 2.0),
        ([T, 1, 2, T + 100], (1, 2), 30.0),
        ([T, 1, 2], (1, 2), 30.0),
        ([], (), 30.0),
    ):
        agreed = agreement()
        settled, ended_at = agreed.end_window(heard, 30.0)
        assert settled == new
        assert ended_at == pytest.approx(seconds)
        assert agreed.settled == agreed.rest == ()
    agreed = agreement()
    for _ in range(2):
        agreed.take([T, 1, T + 50, T + 50, 2], "en")
    assert agreed.end_window([*agreed.settled, 3], 30.0) == ((3,), 30.0), "what is settled is not heard again"


def test_the_end_settles_all() -> None:
    agreed = agreement()
    agreed.take([T, 1, 2], "en")
    assert agreed.take_all([T, 1, 5, 60, T + 90]) == (1, 5, 60)
    assert agreed.rest == ()
    assert agreed.settled == (T, 1, 5, 60, T + 90)


def test_a_segment_that_the_decoder_closes_is_whole() -> None:
    agreed = agreement()
    heard = [T, 1, 2, T + 50, T + 50]
    assert agreed.take(heard, "en") == ()
    assert agreed.cut(is_long=False) == 0
    assert agreed.take(heard, "en") == (1, 2)
    assert agreed.cut(is_long=False) == pytest.approx(1.0)
    assert agreed.settled == (T,)
