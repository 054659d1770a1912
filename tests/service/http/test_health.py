"""/readyz goes by real inferences: those of clients, else a probe of its own, at most one at a time."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.errors import ClientGone
from service.http.app import Engine, create_app
from service.http.server import Server
from service.transcription.transcriber import Options
from tests.support.serving import HOSTILE_GUEST, LOOP, assert_error, engine_for, post, ready, settings_for, tone_audio
from tests.support.waiting import until

NEVER = float("-inf")
DEAD_GUEST = '(module (memory (export "memory") 1) (func (export "_start") unreachable))'


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    settings = settings_for(folder, workers=1, probe_limit_s=0.1)
    with engine_for(settings, guest=HOSTILE_GUEST) as engine:
        yield ready(engine)


def test_a_probe_tells_nothing_of_how_long_requests_take(folder: Path) -> None:
    with engine_for(settings_for(folder)) as engine:
        transcriber = engine.load()
        engine.prove(transcriber)
        assert not transcriber.admission.settle(0.0)
        transcriber.submit(tone_audio(1.0), Options()).future.result(60)
        assert transcriber.admission.settle(0.0)


def test_old_proof_is_renewed_by_a_probe_and_by_clients(folder: Path) -> None:
    with engine_for(settings_for(folder, probe_limit_s=60.0)) as engine:
        client = TestClient(create_app(ready(engine)))
        transcriber = engine.transcriber
        assert transcriber is not None
        transcriber.proven_at = NEVER
        assert client.get("/readyz").status_code == 200
        by_probe = transcriber.proven_at
        assert by_probe > NEVER
        assert client.get("/readyz").status_code == 200
        assert transcriber.proven_at == by_probe, "fresh proof needs no other"
        transcriber.proven_at = NEVER
        assert post(client).status_code == 200
        assert transcriber.proven_at > by_probe


def test_a_server_whose_workers_are_stuck_is_not_ready_until_they_are_not(engine: Engine) -> None:
    client = TestClient(create_app(engine))
    transcriber = engine.transcriber
    assert transcriber is not None
    stuck = transcriber.submit(tone_audio(1.0), Options(prompt=LOOP))
    until(lambda: transcriber.computing.n_held, "the job computes")
    transcriber.proven_at = NEVER
    assert "No recent transcription" in assert_error(client.get("/readyz"), 503, "not_ready")
    assert_error(client.get("/readyz"), 503, "not_ready")
    assert [thread.name for thread in threading.enumerate()].count("wisp-probe") == 1
    assert client.get("/healthz").status_code == 200
    stuck.cancel()
    assert isinstance(stuck.future.exception(60), ClientGone)

    def is_ready() -> bool:
        assert transcriber.computing.n_waiting <= 1
        return client.get("/readyz").status_code == 200

    until(is_ready, "the server is ready")
    assert transcriber.proven_at > NEVER


def test_a_probe_that_fails_is_not_repeated_at_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with engine_for(settings_for(folder), guest=DEAD_GUEST) as engine:
        client = TestClient(create_app(ready(engine)))
        for _ in range(5):
            assert_error(client.get("/readyz"), 503, "not_ready")
    assert caplog.text.count("an inference failed") == 1


def test_a_server_told_to_stop_is_not_ready(engine: Engine) -> None:
    app = create_app(engine)
    client = TestClient(app)
    assert client.get("/readyz").status_code == 200
    Server(app, (), grace_s=1.0, on_stop=app.state.health.stop).handle_exit(signal.SIGTERM, None)
    assert assert_error(client.get("/readyz"), 503, "not_ready") == "The server is stopping."
