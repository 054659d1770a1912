"""The protocol, event by event, against an engine that hears what the test says."""

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from service.http.realtime import session as sessions
from service.http.realtime.names import HYPOTHESES, LOGPROBS, TRANSCRIPTION
from tests.support.realtime import FAIL, HANG, Client, FakeListener, LiveServer, append, live_server, pcm
from tests.support.serving import engine_for, ready, settings_for
from tests.support.waiting import until

SPEECH, SILENCE = append(pcm(0.2)), append(pcm(0.2, 0))
COMMIT, CLEAR = {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        engine_for(settings_for(folder, live_append_bytes=1 << 20, live_buffer_s=2.0)) as engine,
    ):
        patch.setattr(sessions, "Listener", FakeListener)
        with live_server(ready(engine)) as server:
            yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[Client]:
    FakeListener.buffered_s = 0.0
    FakeListener.made.clear()
    with server.session() as client:
        yield client
    until(lambda: not server.n_sessions(), "its place is free again")


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("input_audio_buffer.").removeprefix("conversation.item.") for event in events]


def joined(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("delta", "") for event in events)


def test_a_session_is_told_at_once(server: LiveServer) -> None:
    with server.connect("/v1/realtime?intent=transcription") as client:
        created = client.recv()
    assert created["type"] == "session.created"
    session = created["session"]
    assert set(session) == {"type", "object", "id", "expires_at", "include", "audio"}
    assert session["id"].startswith("sess_")
    assert abs(session["expires_at"] - time.time() - 3600) < 60
    assert session["audio"]["input"]["transcription"] == {"model": "synthetic"}


def test_an_utterance_found_by_voice_activity(client: Client) -> None:
    client.send(SPEECH, SPEECH, SILENCE)
    events = client.until("completed")
    assert kinds(events) == [
        "speech_started",
        "input_audio_transcription.delta",
        "input_audio_transcription.delta",
        "speech_stopped",
        "committed",
        "added",
        "done",
        "input_audio_transcription.delta",
        "input_audio_transcription.completed",
    ]
    item_id = events[0]["item_id"]
    assert all(event.get("item_id", event.get("item", {}).get("id")) == item_id for event in events)
    assert events[0]["audio_start_ms"] == 0 and 380 <= events[3]["audio_end_ms"] <= 600
    assert events[4]["previous_item_id"] is None
    assert (
        events[5]["item"]
        == events[6]["item"]
        == {
            "id": item_id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
    )
    done = events[-1]
    assert done["transcript"] == joined(events) == "w1 w2 end"
    assert done["usage"]["type"] == "duration" and 0.5 < done["usage"]["seconds"] < 0.7
    assert done["languages"] == [{"code": "en"}] and done["content_index"] == 0
    assert "logprobs" not in done and all("logprobs" not in event for event in events)


def test_items_follow_each_other(client: Client) -> None:
    client.send(SPEECH, SILENCE, SPEECH, SILENCE)
    first = client.until("completed")
    second = client.until("completed")
    committed = [event for event in (*first, *second) if event["type"].endswith("committed")]
    assert committed[1]["previous_item_id"] == committed[0]["item_id"]


def test_a_commit_ends_what_is_being_said(client: Client) -> None:
    client.send(SPEECH, COMMIT)
    assert kinds(client.until("completed"))[:4] == [
        "speech_started",
        "input_audio_transcription.delta",
        "speech_stopped",
        "committed",
    ]


def test_without_turn_detection_only_a_commit_ends_an_item(client: Client) -> None:
    assert client.configure(turn_detection=None)["audio"]["input"]["turn_detection"] is None
    client.send(SPEECH, SILENCE, SPEECH, COMMIT)
    events = client.until("completed")
    assert kinds(events) == [
        "input_audio_transcription.delta",
        "input_audio_transcription.delta",
        "committed",
        "added",
        "done",
        "input_audio_transcription.delta",
        "input_audio_transcription.completed",
    ]
    assert events[-1]["transcript"] == joined(events) == "w1 w2 end"


def test_silence_that_is_committed_has_an_empty_transcript(client: Client) -> None:
    client.configure(turn_detection=None)
    client.send(SILENCE, COMMIT)
    *others, done = client.until("completed")
    assert done["transcript"] == "" and kinds(others) == ["committed", "added", "done"]


def test_log_probabilities_and_hypotheses_are_for_those_who_ask(client: Client) -> None:
    assert client.update(include=[LOGPROBS, HYPOTHESES])["include"] == [LOGPROBS, HYPOTHESES]
    client.send(SPEECH, SPEECH, COMMIT)
    events = client.until("completed")
    spoken = [event for event in events if event["type"].endswith((".delta", ".hypothesis"))]
    assert [event["type"].rpartition(".")[2] for event in spoken] == [
        "delta",
        "hypothesis",
        "delta",
        "hypothesis",
        "delta",
    ]
    assert spoken[1]["text"] == " perhaps" and spoken[1]["content_index"] == 0
    told = [token for event in spoken for token in event.get("logprobs", ())]
    assert events[-1]["logprobs"] == told
    assert told[0] == {"token": " w1", "logprob": -0.5, "bytes": list(b" w1")} and len(told) == 3


def test_a_failed_transcription_fails_its_item_only(client: Client) -> None:
    client.configure(transcription={"prompt": FAIL})
    client.send(SPEECH, SILENCE)
    failed = client.until("failed")[-1]
    assert failed["type"] == f"{TRANSCRIPTION}.failed" and failed["content_index"] == 0
    assert failed["error"] == {
        "type": "server_error",
        "code": "device_lost",
        "message": "The GPU has failed; the next request opens it again.",
        "param": None,
    }
    client.configure(transcription={"prompt": None})
    client.send(SPEECH, SILENCE)
    assert client.until("completed")[-1]["transcript"] == "w1 end"


def test_items_may_finish_out_of_order(client: Client) -> None:
    client.configure(transcription={"prompt": HANG})
    client.send(SPEECH, SILENCE)
    slow = client.until("item.done")[-1]["item"]["id"]
    client.configure(transcription={"prompt": None})
    client.send(SPEECH, SILENCE)
    events = client.until("completed")
    assert events[-1]["item_id"] != slow


def test_clear_forgets_what_was_not_committed(client: Client) -> None:
    client.configure(turn_detection=None)
    client.send(SPEECH, COMMIT, SPEECH, CLEAR)
    events = client.until("cleared")
    while not any(event["type"].endswith("completed") for event in events):
        events.append(client.recv())
    assert [event["transcript"] for event in events if event["type"].endswith("completed")] == ["w1 end"]
    client.send(COMMIT)
    assert client.recv()["error"]["code"] == "input_audio_buffer_commit_empty"


@pytest.mark.parametrize("seconds", [0, 0.05, 0.099])
def test_a_commit_of_too_little_is_an_error_with_the_clients_id(client: Client, seconds: float) -> None:
    if seconds:
        client.send(append(pcm(seconds, 0)))
    client.send({**COMMIT, "event_id": "mine"})
    error = client.recv()
    assert error["type"] == "error"
    assert (error["error"]["code"], error["error"]["event_id"]) == ("input_audio_buffer_commit_empty", "mine")


def test_a_commit_of_a_tenth_of_a_second_is_enough(client: Client) -> None:
    client.send(append(pcm(0.1)), COMMIT)
    assert client.until("completed")[-1]["transcript"] == "w1 end"


@pytest.mark.parametrize(
    ("sent", "code", "param"),
    [
        ("nothing", "malformed_event", None),
        ("[]", "malformed_event", None),
        ("{}", "malformed_event", "type"),
        ("[" * 60_000, "malformed_event", None),
        ("[" * 600_000, "malformed_event", None),
        (b"\x00\x01", "malformed_event", None),
        ({"type": "session.update"}, "malformed_event", "session"),
        ({"type": "session.update", "session": 1}, "invalid_value", "session"),
        ({"type": "input_audio_buffer.append"}, "malformed_event", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "!"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "A" * 1_400_000}, "invalid_value", "audio"),
        ({"type": "response.create"}, "unsupported_value", "type"),
        ({"type": "conversation.item.create", "item": {}}, "unsupported_value", "type"),
        ({"type": "x" * 1000}, "invalid_value", "type"),
    ],
)
def test_a_malformed_event_is_an_error_and_no_more(client: Client, sent: Any, code: str, param: Any) -> None:
    client.send(sent | {"event_id": "mine"} if isinstance(sent, dict) else sent)
    error = client.recv()["error"]
    assert set(error) == {"type", "code", "message", "param", "event_id"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["event_id"] == ("mine" if isinstance(sent, dict) else None)
    assert error["type"] == "invalid_request_error" and error["message"].endswith(".") and len(error["message"]) < 300
    client.send(SPEECH, SILENCE)
    assert client.until("completed")[-1]["transcript"] == "w1 end"


@pytest.mark.parametrize(
    ("heard", "code"),
    [
        ({"transcription": {"language": "de"}}, "unsupported_value"),  # the model knows English only
        ({"transcription": {"language": "klingon"}}, "invalid_value"),
        ({"transcription": {"model": "gpt-5"}}, "model_not_found"),
        ({"format": {"type": "audio/mp3"}}, "invalid_value"),
        ({"turn_detection": {"type": "server_vad", "threshold": 7}}, "invalid_value"),
    ],
)
def test_an_update_that_fails_leaves_the_session_as_it_was(client: Client, heard: Any, code: str) -> None:
    before = client.configure(transcription={"prompt": "Before."}, turn_detection={"type": "server_vad"})
    client.send({"type": "session.update", "event_id": "mine", "session": {"audio": {"input": heard}}})
    error = client.recv()["error"]
    assert (error["code"], error["event_id"]) == (code, "mine")
    assert client.update() == before
    client.send(SPEECH, SILENCE)
    assert client.until("completed")[-1]["transcript"] == "w1 end"
    assert FakeListener.made[-1].options.prompt == "Before."


def test_an_update_is_answered_in_full_and_in_the_form_it_came(client: Client) -> None:
    session = client.configure(transcription={"model": "gpt-4o-transcribe", "language": "en"})
    assert session["audio"]["input"]["transcription"] == {"model": "gpt-4o-transcribe", "language": "en"}
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
    flat = {"input_audio_format": "g711_ulaw", "turn_detection": {"type": "server_vad", "silence_duration_ms": 900}}
    client.send({"type": "transcription_session.update", "session": flat})
    answer = client.recv()
    assert answer["type"] == "transcription_session.updated"
    assert answer["session"]["input_audio_format"] == "g711_ulaw"
    assert answer["session"]["input_audio_transcription"] == {"model": "gpt-4o-transcribe", "language": "en"}
    assert answer["session"]["turn_detection"]["silence_duration_ms"] == 900
    assert FakeListener.made[-1].cutting.silence_duration_ms == 900  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_telephone_sound(client: Client, kind: str) -> None:
    client.configure(format={"type": kind})
    client.send(append(bytes([0x10]) * 1600), COMMIT)
    assert client.until("completed")[-1]["usage"]["seconds"] == 0.2
    assert len(FakeListener.made) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/v1/realtime?model=gpt-realtime",
        "/v1/realtime?model=gpt-4o-realtime-preview",
        "/v1/realtime?model=gpt-realtime-whisper&intent=transcription",
        "/v1/realtime?model=synthetic",
        "/realtime",
        "/openai/v1/realtime?model=whisper-1",
        "/openai/deployments/whisper-1/realtime",
        "/openai/realtime?deployment=whisper-1&api-version=2025-04-01-preview",
        "//v1/realtime/",
    ],
)
def test_the_addresses_of_clients(server: LiveServer, path: str) -> None:
    with server.session(path) as client:
        client.send(SPEECH, COMMIT)
        assert client.until("completed")[-1]["transcript"] == "w1 end"


def test_where_the_address_names_a_model_whose_clients_commit_there_is_no_turn_detection(server: LiveServer) -> None:
    with server.connect("/v1/realtime?model=gpt-realtime-whisper") as client:
        assert client.recv()["session"]["audio"]["input"]["turn_detection"] is None


def test_a_model_that_does_not_exist_is_an_error_before_the_end(server: LiveServer) -> None:
    with server.session("/v1/realtime?model=gpt-5") as client:
        code, events = client.closed()
    assert code == 1008
    assert [event["error"]["code"] for event in events] == ["model_not_found"]


def test_the_client_waits_while_much_audio_does(client: Client) -> None:
    """Nothing is dropped: what was not read stays in the sockets, and comes when there is room."""
    client.send(SPEECH)
    until(lambda: FakeListener.made and FakeListener.made[-1].blocks, "it listens")
    FakeListener.buffered_s = 3.0
    sent = threading.Event()
    large = append(pcm(20.0))

    def send() -> None:
        for _ in range(20):
            client.send(large)
        sent.set()

    thread = threading.Thread(target=send)
    thread.start()
    assert not sent.wait(1.0), "20 MB do not fit into the sockets"
    assert FakeListener.made[-1].n_samples < 3 * 16_000
    FakeListener.buffered_s = 0.0
    thread.join(30)
    client.send(COMMIT)
    client.until("completed")
    assert abs(FakeListener.made[-1].n_samples / 16_000 - 400.2) < 0.1


def test_a_client_that_leaves_ends_all_at_once(server: LiveServer) -> None:
    FakeListener.made.clear()
    with server.session() as client:
        client.send(SPEECH)
        until(lambda: FakeListener.made and FakeListener.made[-1].open is not None, "it speaks")
        client.connection.socket.shutdown(socket.SHUT_RDWR)
        listener = FakeListener.made[-1]
        until(lambda: listener.is_closed and not server.n_sessions(), "the session is over", 5)
    assert all(utterance.is_cancelled for utterance in listener.all)


def test_a_client_that_leaves_while_it_is_not_read(server: LiveServer, client: Client) -> None:
    FakeListener.buffered_s = 1e9
    try:
        client.send(SPEECH)
        until(lambda: FakeListener.made and FakeListener.made[-1].blocks, "it waits")
        connection: Any = next(iter(server.server.server_state.connections))
        connection.loop.call_soon_threadsafe(connection.transport.abort)
        until(lambda: not server.n_sessions(), "the session is over", 5)
    finally:
        FakeListener.buffered_s = 0.0


def test_a_reconfigured_session_keeps_the_listener_of_its_model(client: Client) -> None:
    client.configure(transcription={"prompt": "One."})
    client.configure(transcription={"prompt": "Two.", "model": "whisper-1"})
    assert len(FakeListener.made) == 1 and FakeListener.made[0].options.prompt == "Two."


def test_the_log_has_seconds_and_items_and_neither_speech_nor_prompt(
    server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "wisp"), server.session() as client:
        client.configure(transcription={"prompt": "Secret"})
        client.send(SPEECH, SILENCE)
        client.until("completed")
        client.connection.close()
        until(lambda: "GET /v1/realtime 101" in caplog.text, "the request is logged")
    assert re.search(r"live session: 0\.\d\d s of audio, 1 item, closed with 1000", caplog.text)
    assert "Secret" not in caplog.text and "w1" not in caplog.text


def test_metrics(server: LiveServer, client: Client) -> None:
    import httpx2

    def level(name: str) -> float:
        lines = httpx2.get(server.url + "/metrics").text.splitlines()
        return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")))

    done = 'wisp_live_utterances_total{outcome="done"}'
    before = {name: level(name) for name in (done, "wisp_live_steps_skipped_total", "wisp_live_delay_seconds_count")}
    client.send(SPEECH, SPEECH, SILENCE)
    client.until("completed")
    assert level("wisp_live_sessions") == 1
    gained = {name: level(name) - value for name, value in before.items()}
    assert list(gained.values()) == [1, 2, 2]


def test_a_plain_get_says_what_is_there(server: LiveServer) -> None:
    import httpx2

    answer = httpx2.get(server.url + "/v1/realtime")
    assert answer.status_code == 426 and answer.json()["error"]["code"] == "upgrade_required"
    assert answer.headers["upgrade"] == "websocket"


def test_large_appends_are_read_aside(client: Client) -> None:
    audio = base64.b64encode(pcm(20.0)).decode()
    client.send(json.dumps({"audio": audio, "type": "input_audio_buffer.append"}), COMMIT)
    assert abs(client.until("completed")[-1]["usage"]["seconds"] - 20) < 0.01


def test_a_message_that_is_too_large_ends_the_connection(client: Client) -> None:
    with pytest.raises(ConnectionClosed):
        client.send("x" * (2 << 20))
        client.recv()
    assert client.connection.close_code == 1009
