"""Limits open connections to what the process's open files allow; the most idle ones make room for new ones."""

import errno
import logging
import math
import resource
import time
from collections.abc import Callable, Collection
from typing import Any

log = logging.getLogger("wisp")

MOST_FILES = 65_536  # no higher: some systems allow a billion, and some libraries loop over all
OWN_FILES = 64  # the listener, the model, the log, libraries
FILES_A_PLACE = 3  # an upload's spooled file, its decoder, a guest's memory
THINNED = 1 / 16  # share of the connections closed together, so that a flood isn't sorted for each one
THINNED_WITHOUT_FILES = 1 / 2
LOG_EVERY_S, MAKE_ROOM_EVERY_S = 60.0, 0.5
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # errors after which asyncio waits a second


def raise_file_limit() -> int:
    """Raise this process's limit on open files to the maximum allowed, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft


def connections_within(n_files: int, n_places: int, most: int) -> int:
    """How many of `most` connections fit into `n_files`; up to half of the files are reserved for everything else."""
    return max(1, min(most, n_files - min(n_files // 2, OWN_FILES + FILES_A_PLACE * n_places)))


def thin(connections: Collection[Any], now: float, share: float = THINNED) -> None:
    """Close a share of all connections: the longest idle of those whose client the server is waiting for."""
    late = [(connection.lateness(now), connection) for connection in connections]
    waiting = sorted((pair for pair in late if pair[0] > 0), key=lambda pair: pair[0], reverse=True)
    for _, connection in waiting[: max(1, int(len(connections) * share))]:
        connection.dismiss()


class AcceptErrors:
    """The event loop's exception handler for connections that asyncio cannot accept because files have run out.

    asyncio reports each of them, which would fill the log, and retries a second later. Other reports go to its own
    handler.
    """

    def __init__(self, make_room: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`make_room`: closes connections of little use."""
        self._make_room, self._clock = make_room, clock
        self._next_line = self._next_room = -math.inf

    def __call__(self, loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in OUT_OF_FILES):
            loop.default_exception_handler(context)
            return
        now = self._clock()
        if now >= self._next_line:
            self._next_line = now + LOG_EVERY_S
            log.error("cannot accept connections: %s; closing idle ones, raise the limit on open files", error.strerror)
        if now >= self._next_room:
            self._next_room = now + MAKE_ROOM_EVERY_S
            self._make_room()
