"""A progress bar on stderr, if that is a terminal."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeAlias

if TYPE_CHECKING:
    from tqdm import tqdm

LAYOUT = "{desc}: {percentage:3.0f}% |{bar}| "
NUMBERS = {"B": "{n_fmt}/{total_fmt} {rate_fmt}", "s": "{elapsed}<{remaining}"}


class Unwatched:
    """A bar that shows nothing, without tqdm, which takes 20 ms to load."""

    n = 0.0

    def reset(self, total: float | None = None) -> None:
        self.n = 0.0

    def update(self, n: float | None = 1) -> None:
        self.n += n or 0


Bar: TypeAlias = "tqdm[NoReturn] | Unwatched"


@contextmanager
def progress_bar(total: float, unit: str, what: str) -> Iterator[Bar]:
    """A bar advanced by its update(); `unit` is B for bytes, s for seconds of audio. Hidden without a terminal."""
    if not sys.stderr.isatty():
        yield Unwatched()
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with ExitStack() as stack:
        stack.enter_context(logging_redirect_tqdm(tqdm_class=tqdm))
        bar = tqdm(
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            desc=what,
            bar_format=LAYOUT + NUMBERS[unit],
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
        )
        yield stack.enter_context(bar)
