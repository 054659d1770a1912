"""Reads Wyoming's events within bounds, and writes them.

An event is a line of JSON, then `data_length` bytes of more JSON, then `payload_length` bytes. The package `wyoming`
reads all three at any size. Here a payload is read in pieces, and the rest has size limits.
"""

import asyncio
import io
import json
from dataclasses import dataclass
from typing import Any, Protocol

from wyoming.event import Event, write_event

from service.errors import MalformedEvent

MAX_JSON_BYTES = 64 * 1024  # of the line, and of the data after it
MAX_PAYLOAD_BYTES = 1 << 40  # of one event; never held in memory as a whole
PIECE_BYTES = 32 * 1024
MAX_UNREAD_BYTES = 1024 * 1024  # sent but not read by the client


class Gone(Exception):
    """The client has left, or reads nothing."""


class Eventable(Protocol):
    """Any event class of the package."""

    def event(self) -> Event: ...


@dataclass(frozen=True)
class Head:
    """An event before its payload."""

    type: str
    data: dict[str, Any]
    n_payload: int  # bytes

    def text(self, name: str) -> str | None:
        """A text in the data; None if it is missing or empty. Raises MalformedEvent."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, str):
            raise MalformedEvent(f"{name} must be text.", param=name)
        return value or None

    def number(self, name: str) -> int:
        """A required whole number in the data. Raises MalformedEvent."""
        value = self.data.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise MalformedEvent(f"{name} must be a whole number.", param=name)
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts in the data, without empty ones. Raises MalformedEvent."""
        value = self.data.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise MalformedEvent(f"{name} must be a list of texts.", param=name)
        return [item.strip() for item in value or [] if item.strip()]


async def read_head(reader: asyncio.StreamReader) -> Head:
    """The next event. `reader` has the limit MAX_JSON_BYTES. Raises Gone, MalformedEvent."""
    try:
        line = await reader.readuntil(b"\n")
        event = _object(line)
        data = _object(event.get("data", {}))
        if n_data := _length(event, "data_length", MAX_JSON_BYTES):
            data |= _object(await reader.readexactly(n_data))
    except (asyncio.IncompleteReadError, ConnectionError):
        raise Gone from None
    except asyncio.LimitOverrunError:
        raise MalformedEvent(f"An event's first line has more than {MAX_JSON_BYTES} bytes.") from None
    kind = event.get("type")
    if not isinstance(kind, str):
        raise MalformedEvent("An event has no type.")
    return Head(kind, data, _length(event, "payload_length", MAX_PAYLOAD_BYTES))


async def read_piece(reader: asyncio.StreamReader, n_left: int) -> bytes:
    """The next bytes of a payload, at least one. Raises Gone."""
    try:
        data = await reader.read(min(n_left, PIECE_BYTES))
    except ConnectionError:
        raise Gone from None
    if not data:
        raise Gone
    return data


async def discard(reader: asyncio.StreamReader) -> None:
    """Read until the client has left."""
    try:
        while True:
            await read_piece(reader, PIECE_BYTES)
    except Gone:
        return


def send(writer: asyncio.StreamWriter, event: Eventable) -> None:
    """Send without waiting. Raises Gone if the client has left or doesn't read."""
    buffer = io.BytesIO()
    write_event(event.event(), buffer)
    if writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
        writer.transport.abort()
    if writer.is_closing():
        raise Gone
    writer.write(buffer.getvalue())


def _object(found: object) -> dict[str, Any]:
    if isinstance(found, bytes):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            raise MalformedEvent("An event is not JSON.") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise MalformedEvent("An event and its data must be JSON objects.")
    return found


def _length(event: dict[str, Any], name: str, most: int) -> int:
    value = event.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise MalformedEvent(f"{name} must be a whole number of at most {most} bytes.", param=name)
    return value
