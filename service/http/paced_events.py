"""h11's connection with a limit on events per turn: a body in one-byte chunks costs a parse per byte.

Also rejects Content-Length together with Transfer-Encoding, which RFC 9112 (section 6.1) calls request smuggling.
"""

from typing import Any

import h11

EVENTS_A_TURN = 64  # 25 µs each: one connection blocks the event loop for at most 2 ms
EVENT_PACE = 5000  # extra events a second, over all connections: an eighth of the event loop's time
MOST_EVENT_PAUSE_S = 60.0
FREE_BYTES = 2048  # an event this large costs no more than processing its bytes
FREE_EVENTS = 2.0  # per turn: a request and its end, or part of a body that arrived in small packets
BOTH_LENGTHS = "A request has either Content-Length or Transfer-Encoding, not both."


class PacedConnection(h11.Connection):
    """Gives the events allowed by `allow()`, then asks for data; `is_behind` says whether it still has some."""

    n_left, n_extra, is_behind = 0, 0.0, False  # n_extra: events given beyond what their bytes account for
    method = b""  # of the latest request
    refusal = ""  # why the connection cannot continue

    def allow(self, n_events: int) -> None:
        """Let next_event() give `n_events` more."""
        self.n_left, self.n_extra, self.is_behind = n_events, -FREE_EVENTS, False

    def next_event(self) -> Any:
        """h11's next_event(), within the allowance."""
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
