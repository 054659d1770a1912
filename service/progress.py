"""A progress bar on stderr, where that is a terminal."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

LAYOUT = "{desc}: {percentage:3.0f}% |{bar}| "
NUMBERS = {"B": "{n_fmt}/{total_fmt} {rate_fmt}", "s": "{elapsed}<{remaining}"}


@contextmanager
def progress_bar(total: float, unit: str, what: str) -> Iterator["tqdm[Any]"]:
    """A bar that its update() moves; `unit` is B for bytes, s for seconds of audio. Silent where nobody watches."""
    from tqdm import tqdm

    is_watched = sys.stderr.isatty()
    with ExitStack() as stack:
        if is_watched:
            from tqdm.contrib.logging import logging_redirect_tqdm

            stack.enter_context(logging_redirect_tqdm(tqdm_class=tqdm))
        bar = tqdm(
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            desc=what,
            bar_format=LAYOUT + NUMBERS[unit],
            file=sys.stderr,
            disable=not is_watched,
            leave=False,
            dynamic_ncols=True,
        )
        yield stack.enter_context(bar)
