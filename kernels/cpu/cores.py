"""Shares out the processor's cores: pieces of work in Python, or one C call that other threads help with."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


class Cores:
    """Runs independent pieces of work on every core this process may use. The calling thread always takes part.

    A free core claims the next piece, so a slow core takes fewer. Several threads may call at the same time: each
    helper serves one of them at a time.
    """

    def __init__(self) -> None:
        self.count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(max(1, self.count - 1), thread_name_prefix="kernels.cpu.model")

    def each(self, function: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Call `function` once for every item, in any order; returns when all are done, raises what one raised."""
        waiting = deque(items)

        def drain() -> None:
            while True:
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                function(item)

        self.lead(drain, drain, min(self.count, len(waiting)), waiting.clear)

    def lead(
        self, function: Callable[[], object], help: Callable[[], object], n_threads: int, end: Callable[[], object]
    ) -> None:
        """Call `function` here and `help` in up to n_threads − 1 others; raises what one raised.

        `end`, called after `function` whatever its result, makes every `help` return, including one that starts only
        then.
        """
        helpers = [self._pool.submit(help) for _ in range(n_threads - 1)]
        try:
            function()
        finally:
            end()
            # A helper that never started has nothing left to do.
            failures = [helper.exception() for helper in helpers if not helper.cancel()]
        for failure in failures:
            if failure is not None:
                raise failure

    def aside(self, function: Callable[[], Item]) -> Future[Item]:
        """Call `function` in one of the threads, once one is free."""
        return self._pool.submit(function)

    def close(self) -> None:
        """End the threads once they have finished their work. Idempotent."""
        self._pool.shutdown()


def slices(length: int, size: int) -> list[slice]:
    """`length` cut into slices of at most `size`."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
