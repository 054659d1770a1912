"""Live sessions in progress: a limited number at once, shared fairly by clients, all notified when the server stops."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from service.errors import LiveSessionsFull, NotReady
from service.transcription.admission import current_client, has_room


class Observer(Protocol):
    """Counts what live sessions do."""

    def words_settled(self, delay_s: float) -> None: ...

    def utterance_ended(self, outcome: str, n_skipped: int) -> None: ...


class LivePlace:
    """One session's place. `stopping` is set once the server stops."""

    def __init__(self) -> None:
        self.client, self.stopping = current_client.get(), asyncio.Event()


class LiveSessions:
    """All places. For the event loop's thread."""

    def __init__(self, most: int, observer: Observer) -> None:
        self.most, self.observer, self.is_stopping = most, observer, False
        self._open: set[LivePlace] = set()

    def n_open(self) -> int:
        """Sessions in progress."""
        return len(self._open)

    @contextmanager
    def reserve(self) -> Iterator[LivePlace]:
        """Hold a place during a session. Raises LiveSessionsFull, NotReady."""
        if self.is_stopping:
            raise NotReady("The server is stopping.")
        if not has_room(Counter(place.client for place in self._open), current_client.get(), self.most):
            raise LiveSessionsFull
        place = LivePlace()
        self._open.add(place)
        try:
            yield place
        finally:
            self._open.discard(place)

    def stop(self) -> None:
        """Accept no more sessions, and let the open ones end after their last words."""
        self.is_stopping = True
        for place in self._open:
            place.stopping.set()
