"""A client's frames are read with little work, whatever is in them; and what its audio may look like."""

import base64
import json
import time
from typing import Any

import pytest

from service.errors import InvalidValue, MalformedEvent
from service.http.realtime.events import (
    PLAIN_CHARACTERS,
    audio_bytes,
    client_event_id,
    error_event,
    new_id,
    read_event,
    server_event,
)

MIB = 1 << 20
LARGE = base64.b64encode(bytes(range(256)) * 1024).decode()


def test_a_small_event_is_json() -> None:
    assert read_event('{"type": "x", "audio": "AAAA"}') == {"type": "x", "audio": "AAAA"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"type": "input_audio_buffer.append", "audio": LARGE}),
        json.dumps({"audio": LARGE, "type": "input_audio_buffer.append", "event_id": "e1"}),
        json.dumps({"event_id": "audio", "type": "input_audio_buffer.append", "audio": LARGE}, indent=4),
        json.dumps({"type": "input_audio_buffer.append", "audio": LARGE}).replace("/", "\\/"),
    ],
)
def test_a_large_append_in_any_order_of_its_keys(text: str) -> None:
    event = read_event(text)
    assert event["type"] == "input_audio_buffer.append"
    assert audio_bytes(event, MIB) == bytes(range(256)) * 1024
    assert client_event_id(event) in (None, "e1", "audio")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "[]",
        "3",
        "{}",
        '{"type": 3}',
        '{"type": "x", "strength": NaN}',
        '{"type": "x", "strength": [-Infinity]}',
        '{"type": "x", "strength": 1e999}',
        "{" * 1000,
        "[" * PLAIN_CHARACTERS,
        "[" * 20 * MIB,
        "[" + "1," * 10 * MIB + "1]",
        '{"type": "session.update", "session": {"audio": "' + "A" * 20 * MIB + '"}}',
        '{"type": "input_audio_buffer.append", "audio": "' + "A" * 20 * MIB,
        '{"type": "input_audio_buffer.append", "audio": "' + "A" * MIB + '"' + " " * MIB + "}",
        '{"type": "input_audio_buffer.append", "other": "' + "A" * MIB + '", "audio": "AAAA"}',
        '{"type": "input_audio_buffer.append", "audio": ["' + "A" * MIB + '"]}',
        '"audio"' * 3 * MIB,
    ],
)
def test_anything_else_is_refused_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(MalformedEvent):
        read_event(text)
    assert time.process_time() - began < 0.5, "parsing ten million numbers takes longer"


def test_text_that_utf8_cannot_hold_is_replaced() -> None:
    event = read_event('{"type": "x", "event_id": "\\ud800"}')
    assert client_event_id(event) == "\ufffd"
    server_event("x", text=event["event_id"]).encode()


@pytest.mark.parametrize(
    ("audio", "data"), [("", b""), ("AAAA", bytes(3)), ("AAA", bytes(2)), ("AAA=", bytes(2)), ("-_-_", b"\xfb\xff\xbf")]
)
def test_base64(audio: str, data: bytes) -> None:
    assert audio_bytes({"audio": audio}, MIB) == data


@pytest.mark.parametrize("audio", ["A", "A===", "AA=A", "AA AA", "AAAA\n", "ä", "AA\\A", "====", "AA==AA=="])
def test_what_is_no_base64_is_refused(audio: str) -> None:
    with pytest.raises(InvalidValue, match="isn't base64") as raised:
        audio_bytes({"audio": audio}, MIB)
    assert raised.value.param == "audio"


@pytest.mark.parametrize("audio", [None, 3, ["AAAA"], {"data": "AAAA"}])
def test_audio_is_text(audio: Any) -> None:
    with pytest.raises(MalformedEvent):
        audio_bytes({"audio": audio}, MIB)


def test_the_largest_append() -> None:
    audio = base64.b64encode(bytes(MIB)).decode()
    assert len(audio_bytes({"audio": audio}, MIB)) == MIB
    with pytest.raises(InvalidValue, match="1048572 bytes"):
        audio_bytes({"audio": audio}, MIB - 4)


def test_server_events_have_ids_and_errors_the_clients() -> None:
    first, second = json.loads(server_event("x", a=1)), json.loads(server_event("x", a=1))
    assert first["event_id"] != second["event_id"] and first | {"event_id": 0} == {"type": "x", "a": 1, "event_id": 0}
    event = json.loads(error_event(InvalidValue("No.", param="p"), "mine"))
    assert event["error"] == {
        "type": "invalid_request_error",
        "code": "invalid_value",
        "message": "No.",
        "param": "p",
        "event_id": "mine",
    }
    assert new_id("item").startswith("item_")
    assert client_event_id({"event_id": 3}) is None and client_event_id({"event_id": "x" * 513}) is None
