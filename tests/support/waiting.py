"""Waiting in tests for what comes by itself, never without an end."""

import time
from collections.abc import Callable

TICK_S = 0.001


def until(is_so: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Return once `is_so()` is true. Fails the test where `what`, a short sentence, is not so after `seconds`."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"After {seconds:g} s it is still not so that {what}."
        time.sleep(TICK_S)  # a thread that spins would keep others from what is waited for
