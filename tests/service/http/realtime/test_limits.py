"""A session's limits, who may open one, and how it ends when its time is over or the server stops."""

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from service.http.realtime import session as sessions
from service.http.realtime.items import MOST_AWAITED
from service.http.realtime.secrets import ClientSecrets
from tests.support.processes import server_process
from tests.support.realtime import HANDSHAKE, HANG, FakeListener, LiveServer, append, live_server, message, pcm
from tests.support.serving import assert_error, engine_for, ready, settings_for
from tests.support.waiting import until

SPEECH = append(pcm(0.2))
ALICE, BOB = "sk-alice", "sk-bob"


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "Listener", FakeListener)
    FakeListener.buffered_s = 0.0
    FakeListener.made.clear()


@contextmanager
def serving(folder: Path, *, grace_s: float = 20.0, **settings: Any) -> Iterator[LiveServer]:
    with engine_for(settings_for(folder, **settings)) as engine, live_server(ready(engine), grace_s=grace_s) as server:
        yield server


@pytest.fixture(scope="module")
def keyed(folder: Path) -> Iterator[LiveServer]:
    with serving(folder, api_keys=ALICE) as server:
        yield server


@pytest.fixture(scope="module")
def open_to_all(folder: Path) -> Iterator[LiveServer]:
    with serving(folder) as server:
        yield server


def refused(server: LiveServer, path: str = "/v1/realtime", **options: Any) -> httpx2.Response:
    """The answer before the handshake."""
    with pytest.raises(InvalidStatus) as raised, server.connect(path, **options):
        pass
    response = raised.value.response
    return httpx2.Response(
        response.status_code, headers=list(response.headers.raw_items()), content=bytes(response.body)
    )


def bearer(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


def test_more_sessions_than_there_may_be_are_refused_before_they_begin(folder: Path) -> None:
    with serving(folder, live_sessions=2) as server, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(server.session())
        answer = refused(server)
        assert "WISP_LIVE_SESSIONS" in assert_error(answer, 429, "live_sessions_full")
        assert answer.headers["retry-after"] == "5" and answer.headers["x-request-id"]
        stack.close()
        until(lambda: not server.n_sessions(), "they have ended")
        with server.session():
            pass


def test_one_key_cannot_take_all_sessions(folder: Path) -> None:
    with serving(folder, live_sessions=4, api_keys=f"{ALICE},{BOB}") as server, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(server.session(**bearer(ALICE)))
        assert_error(refused(server, **bearer(ALICE)), 429, "live_sessions_full")
        stack.enter_context(server.session(**bearer(BOB)))


@pytest.mark.parametrize(("setting", "reason"), [("live_idle_s", "idle"), ("live_max_s", "time is over")])
def test_a_session_that_is_over_says_its_last_words(folder: Path, setting: str, reason: str) -> None:
    with serving(folder, **{setting: 1.0}) as server, server.session() as client:
        client.send(SPEECH)
        code, events = client.closed()
        assert events[-1]["transcript"] == "w1 end" and code == 1000
        assert reason in str(client.connection.close_reason)
        until(lambda: not server.n_sessions(), "its place is free")


def test_a_session_that_goes_on_speaking_ends_in_time_too(folder: Path) -> None:
    with serving(folder, live_max_s=1.0) as server, server.session() as client:
        FakeListener.buffered_s = 1e9  # nothing is heard in time
        client.send(*[SPEECH] * 5)
        code, events = client.closed()
        assert code == 1000 and events[-1]["transcript"].endswith("end")


@pytest.mark.parametrize("ending", ["time", "SIGTERM"])
def test_a_client_that_never_pauses_does_not_delay_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Its next message is always there."""
    hear = FakeListener.hear

    async def hear_slowly(listener: FakeListener, samples: Any) -> Any:
        await asyncio.sleep(0.02)
        return await hear(listener, samples)

    monkeypatch.setattr(FakeListener, "hear", hear_slowly)
    limit_s = 1.0 if ending == "time" else 60.0
    with serving(folder, live_max_s=limit_s) as server, server.session() as client:

        def flood() -> None:
            with suppress(ConnectionClosed):
                for _ in range(1000):  # 20 s of hearing
                    client.send(SPEECH)

        sending = threading.Thread(target=flood)
        sending.start()
        if ending == "SIGTERM":
            until(lambda: FakeListener.made and FakeListener.made[-1].n_samples > 16_000, "it speaks")
            server.server.handle_exit(signal.SIGTERM, None)
        code, events = client.closed()
        sending.join()
        assert code == (1000 if ending == "time" else 1001)
        assert events[-1]["transcript"].endswith("end")
        assert FakeListener.made[-1].n_samples < 16_000 * 0.2 * 300, "what came after the end isn't heard"


def test_transcripts_that_do_not_come_fail_in_time(folder: Path) -> None:
    limits = {"live_max_s": 1.0, "deadline_floor_s": 1.0, "deadline_factor": 0.001}
    with serving(folder, **limits) as server, server.session() as client:
        client.configure(transcription={"prompt": HANG})
        client.send(SPEECH)
        code, events = client.closed()
        assert code == 1000 and events[-1]["error"]["code"] == "deadline_exceeded"
        until(lambda: not server.n_sessions(), "its place is free")


def test_a_client_that_reads_too_slowly_does_not_keep_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "CLOSE_S", 0.2)
    heard = {"transcription": {"prompt": "x" * 60_000}}  # which the answer repeats
    update = {"type": "session.update", "session": {"audio": {"input": heard}}}
    with serving(folder, live_max_s=1.0) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(HANDSHAKE)
        until(lambda: server.n_sessions() == 1, "it has begun")
        with suppress(OSError):
            client.settimeout(1.5)
            client.sendall(message(json.dumps(update).encode()) * 400)
        until(lambda: not server.n_sessions(), "its place is free", 10)


def test_a_session_has_few_transcripts_pending(folder: Path) -> None:
    commit = {"type": "input_audio_buffer.commit"}
    with serving(folder, live_max_s=2.0, deadline_floor_s=1.0, deadline_factor=0.001) as server:
        with server.session() as client:
            client.configure(transcription={"prompt": HANG}, turn_detection=None)
            client.send(*[SPEECH, commit] * 3 * MOST_AWAITED)
            _, events = client.closed()
        kinds = [event["type"].rpartition(".")[2] for event in events]
        assert kinds.count("committed") == kinds.count("failed") == MOST_AWAITED


def test_a_stopping_server_lets_sessions_say_their_last_words(folder: Path) -> None:
    with serving(folder) as server, server.session() as client, server.session() as silent:
        client.send(SPEECH)
        until(lambda: FakeListener.made and FakeListener.made[-1].open is not None, "it speaks")
        server.server.handle_exit(signal.SIGTERM, None)
        code, events = client.closed()
        assert code == 1001 and events[-1]["transcript"] == "w1 end"
        assert silent.closed() == (1001, [])


def test_what_is_not_ready_when_the_grace_is_over_fails(folder: Path) -> None:
    with serving(folder, grace_s=0.3) as server, server.session() as client:
        client.configure(transcription={"prompt": HANG})
        client.send(SPEECH)
        until(lambda: FakeListener.made and FakeListener.made[-1].open is not None, "it speaks")
        server.server.handle_exit(signal.SIGTERM, None)
        code, events = client.closed()
    assert code == 1001 and events[-1]["type"].endswith("failed")
    assert events[-1]["error"]["message"] == "The server is stopping."


def test_a_real_server_that_is_terminated(folder: Path, tmp_path: Path) -> None:
    """With the real engine, and speech that is still under way."""
    with server_process(folder, tmp_path) as process:
        server = LiveServer(None, None, int(process.url.rpartition(":")[2]))  # type: ignore[arg-type]
        with server.session() as client:
            client.configure(turn_detection=None)
            client.send(*[SPEECH] * 10)
            client.update()
            process.signal(signal.SIGTERM)
            code, events = client.closed()
        process.end()
    assert code == 1001 and events[-1]["type"].endswith("completed") and events[-1]["usage"]["seconds"] == 2.0
    assert process.log.rstrip().endswith("stopped") and "Traceback" not in process.log and "ERROR" not in process.log


# Keys, origins


def test_a_missing_key_is_told_before_the_handshake(keyed: LiveServer) -> None:
    for options in ({}, bearer("wrong"), {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]}):
        answer = refused(keyed, **options)
        assert_error(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer" and "wrong" not in answer.text
    for path in ("/realtime", "/openai/realtime", "/nothing"):
        assert_error(refused(keyed, path), 401, "invalid_api_key")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["realtime", f"openai-insecure-api-key.{ALICE}"], "realtime"),
        ([f"openai-insecure-api-key.{ALICE}", "realtime", "openai-beta.realtime-v1"], "realtime"),
        ([f"openai-insecure-api-key.{ALICE}"], None),
    ],
)
def test_a_page_sends_its_key_as_a_subprotocol(keyed: LiveServer, offered: list[str], chosen: str | None) -> None:
    with keyed.session(subprotocols=offered) as client:
        assert client.connection.subprotocol == chosen


def test_no_subprotocol_is_chosen_where_none_is_offered(open_to_all: LiveServer) -> None:
    with open_to_all.session() as client:
        assert client.connection.subprotocol is None


def test_a_keys_models_are_a_sessions(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{ALICE} models=other\n{BOB} models=synthetic\n")
    with serving(folder, api_keys_file=str(keys)) as server:
        with server.session(**bearer(ALICE)) as client:
            assert client.configure(transcription={"model": "whisper-1"})["code"] == "model_not_allowed"
            client.send(SPEECH)
            code, events = client.closed()
            assert code == 1008 and events[-1]["error"]["code"] == "model_not_allowed"
        with server.session(**bearer(BOB)) as client:
            assert "audio" in client.configure(transcription={"model": "whisper-1"})


def test_pages_of_other_origins_are_refused(folder: Path) -> None:
    with serving(folder, cors_origins="https://a.example") as server:
        answer = refused(server, origin="https://evil.example")
        assert_error(answer, 403, "foreign_origin")
        for origin in ("https://a.example", server.url):
            with server.session(origin=origin):
                pass


def test_an_unknown_path_and_a_stopping_server(folder: Path) -> None:
    with serving(folder) as server:
        assert_error(refused(server, "/v1/nothing"), 404, "not_found")
        server.app.state.service.live.stop()
        assert_error(refused(server), 503, "not_ready")


# Client secrets


def secret(server: LiveServer, key: str = "", **body: Any) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(f"{server.url}/v1/realtime/client_secrets", json=body, headers=headers)


def test_a_client_secret_opens_sessions_and_nothing_else(keyed: LiveServer) -> None:
    assert_error(secret(keyed), 401, "invalid_api_key")
    heard = {"transcription": {"prompt": "Wisp.", "language": "en"}, "turn_detection": None}
    made = secret(keyed, ALICE, session={"type": "transcription", "audio": {"input": heard}}).json()
    assert made["value"].startswith("ek_") and len(made["value"]) > 40
    assert made["session"]["audio"]["input"]["transcription"]["prompt"] == "Wisp."
    assert made["session"]["type"] == "transcription" and made["session"]["expires_at"] == made["expires_at"]
    as_subprotocol = {"subprotocols": ["realtime", f"openai-insecure-api-key.{made['value']}"]}
    for options in (bearer(made["value"]), as_subprotocol):
        with keyed.connect(**options) as client:
            shown = client.recv()["session"]["audio"]["input"]
            assert shown["transcription"]["prompt"] == "Wisp." and shown["turn_detection"] is None
    answer = httpx2.get(keyed.url + "/v1/models", headers={"Authorization": f"Bearer {made['value']}"})
    assert_error(answer, 401, "invalid_api_key")
    assert_error(secret(keyed, made["value"]), 401, "invalid_api_key")


def test_a_secret_has_the_rights_of_the_key_that_made_it(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{ALICE} models=other\n")
    with serving(folder, api_keys_file=str(keys)) as server:
        assert_error(
            secret(server, ALICE, session={"audio": {"input": {"transcription": {"model": "whisper-1"}}}}),
            403,
            "model_not_allowed",
            "model",
        )
        made = secret(server, ALICE).json()
        with server.session(**bearer(made["value"])) as client:
            assert client.configure(transcription={"model": "whisper-1"})["code"] == "model_not_allowed"


def test_without_keys_there_are_secrets_too(open_to_all: LiveServer) -> None:
    made = secret(open_to_all, expires_after={"anchor": "created_at", "seconds": 60}).json()
    with open_to_all.session(**bearer(made["value"])):
        pass


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 7201}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": "60"}}, "expires_after.seconds"),
        ({"expires_after": 60}, "expires_after.seconds"),
        ({"session": 1}, "session"),
        ({"session": {"audio": {"input": {"format": "mp3"}}}}, "session.audio.input.format"),
    ],
)
def test_what_a_secret_cannot_be_for(open_to_all: LiveServer, body: dict[str, Any], param: str) -> None:
    assert_error(secret(open_to_all, **body), 400, "invalid_value", param)


@pytest.mark.parametrize("strength", ["NaN", "-Infinity", "1e999"])
def test_a_secrets_numbers_are_finite(open_to_all: LiveServer, strength: str) -> None:
    body = '{"session": {"audio": {"input": {"noise_reduction": {"strength": STRENGTH}}}}}'.replace(
        "STRENGTH", strength
    )
    answer = httpx2.post(f"{open_to_all.url}/v1/realtime/client_secrets", content=body)
    assert_error(answer, 400, "malformed_form")


def test_a_secrets_prompt_may_be_cut_anywhere(open_to_all: LiveServer) -> None:
    body = '{"session": {"audio": {"input": {"transcription": {"prompt": "a\\ud83d"}}}}}'
    answer = httpx2.post(f"{open_to_all.url}/v1/realtime/client_secrets", content=body)
    assert answer.json()["session"]["audio"]["input"]["transcription"]["prompt"] == "a\N{REPLACEMENT CHARACTER}"


def test_the_betas_route(open_to_all: LiveServer) -> None:
    body = {"input_audio_format": "g711_ulaw", "client_secret": {"expires_at": {"seconds": 30}}}
    made = httpx2.post(open_to_all.url + "/v1/realtime/transcription_sessions", json=body).json()
    assert made["input_audio_format"] == "g711_ulaw" and made["client_secret"]["value"].startswith("ek_")
    with open_to_all.connect(**bearer(made["client_secret"]["value"])) as client:
        assert client.recv()["session"]["audio"]["input"]["format"]["type"] == "audio/pcmu"


def test_secrets_end_and_are_bounded() -> None:
    from service.errors import ClientSecretsFull
    from service.http.realtime.configuration import Configuration

    now = 1000.0
    secrets = ClientSecrets(3, clock=lambda: now)
    values = [secrets.create(60, key=None, rights=None, configuration=Configuration())[0] for _ in range(3)]
    assert len(set(values)) == 3 and all(secrets.find([value]) for value in values)
    with pytest.raises(ClientSecretsFull):
        secrets.create(60, key=None, rights=None, configuration=Configuration())
    now = 1061.0
    assert secrets.find(values) is None
    value, expires_at = secrets.create(10, key=None, rights=None, configuration=Configuration())
    assert expires_at == 1071 and secrets.find(["x", "", value]) is not None
    assert secrets.find([value[:-1], value + "x", "ek_"]) is None


def test_secrets_are_not_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), serving(folder, api_keys=ALICE) as server:
        value = secret(server, ALICE).json()["value"]
        with server.session(subprotocols=["realtime", f"openai-insecure-api-key.{value}"]):
            pass
        until(lambda: "GET /v1/realtime 101" in caplog.text, "it is logged")
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith(("wisp", "uvicorn")))
    assert value not in logged and ALICE not in logged


def test_the_engine_may_still_be_loading(folder: Path) -> None:
    with engine_for(settings_for(folder)) as engine:
        engine.start()
        with live_server(engine) as server, server.session() as client:
            client.send(SPEECH, {"type": "input_audio_buffer.commit"})
            assert client.until("completed")[-1]["transcript"] == "w1 end"
