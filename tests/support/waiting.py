"""Waiting in tests for asynchronous events, always with a limit."""

import time
from collections.abc import Callable

TICK_S = 0.001


def until(is_so: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Return once `is_so()` is true. Fails the test if `what`, a short sentence, isn't true after `seconds`."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"After {seconds:g} s it is still not so that {what}."
        time.sleep(TICK_S)  # spinning would delay the awaited threads
