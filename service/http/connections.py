"""How many connections there may be: fewer than the process may have open files, and the most idle one gives way."""

import errno
import logging
import math
import resource
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

log = logging.getLogger("wisp")

MOST_FILES = 65_536  # raised no further: some systems allow a billion, and some libraries loop over all
OWN_FILES = 64  # the listener, the model, the log, libraries
FILES_A_PLACE = 3  # an upload's spooled file, what decodes it, a guest's memory
THINNED = 1 / 16  # of the connections go at once, so that a flood is not sorted for each
THINNED_WITHOUT_FILES = 1 / 2
LOG_EVERY_S, MAKE_ROOM_EVERY_S = 60.0, 0.5
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # for which asyncio waits a second


class Connection(Protocol):
    """What can be asked of a connection."""

    def lateness(self, now: float) -> float:
        """Seconds that the server has waited for the client, above what its bytes excuse; -inf if it does not wait."""

    def dismiss(self) -> None:
        """End it at once."""


def raise_file_limit() -> int:
    """Raise this process's limit of open files as far as it may, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft


def connections_within(n_files: int, n_places: int, most: int) -> int:
    """How many of `most` connections fit into `n_files`, half of which at most are kept for all else."""
    return max(1, min(most, n_files - min(n_files // 2, OWN_FILES + FILES_A_PLACE * n_places)))


def thin(connections: Collection[Any], now: float, share: float = THINNED) -> None:
    """Dismiss a share of all connections, those that the server has waited for longest, where it waits for any."""
    late = [(connection.lateness(now), connection) for connection in connections]
    waiting = sorted((pair for pair in late if pair[0] > 0), key=lambda pair: pair[0], reverse=True)
    for _, connection in waiting[: max(1, int(len(connections) * share))]:
        connection.dismiss()


class AcceptErrors:
    """The event loop's exception handler: asyncio reports each connection that it cannot accept for want of files.

    It would fill the log, and tries again by itself a second later. Other reports go to asyncio's own handler.
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
            log.error("cannot accept connections: %s; closing idle ones, raise the limit of open files", error.strerror)
        if now >= self._next_room:
            self._next_room = now + MAKE_ROOM_EVERY_S
            self._make_room()
