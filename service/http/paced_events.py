"""h11's connection, a bounded number of events at a time: a body of one-byte chunks costs a parse for each byte.

Also refuses what RFC 9112 (section 6.1) calls an attempt at smuggling: Content-Length with Transfer-Encoding.
"""

from typing import Any

import h11

EVENTS_A_TURN = 64  # 25 µs each: one connection keeps the event loop from the others for 2 ms
EVENT_PACE = 5000  # extra events a second, of all connections together: an eighth of the event loop's time
MOST_EVENT_PAUSE_S = 60.0
FREE_BYTES = 2048  # an event of this size costs no more than what is done with its bytes
FREE_EVENTS = 2.0  # in a turn: a request and its end, or a piece of a body that came in small packets
BOTH_LENGTHS = "A request has either Content-Length or Transfer-Encoding, not both."


class PacedConnection(h11.Connection):
    """Gives `allow()`ed events, then asks for more data although there may be some: `is_behind` says so."""

    n_left, n_extra, is_behind = 0, 0.0, False  # n_extra: of those given, how many their bytes do not account for
    method = b""  # of the latest request
    refusal = ""  # why the connection cannot go on

    def allow(self, n_events: int) -> None:
        """Let next_event() give this many more."""
        self.n_left, self.n_extra, self.is_behind = n_events, -FREE_EVENTS, False

    def next_event(self) -> Any:
        """h11's, within the allowance."""
        if self.refusal:
            raise h11.RemoteProtocolError(self.refusal)
        if not self.n_left:
            self.is_behind = True
            return h11.NEED_DATA
        event = super().next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return event
        self.n_left -= 1
        self.n_extra += 1.0 if not isinstance(event, h11.Data) else 1.0 - len(event.data) / FREE_BYTES
        if isinstance(event, h11.Request):
            self.method = event.method
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                self.refusal = BOTH_LENGTHS
                raise h11.RemoteProtocolError(self.refusal)
        return event
