"""A GPU that fails in a running service: current requests get an error, later ones another device."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from starlette.testclient import TestClient

from kernels.webgpu.device import DeviceError
from service.errors import DeviceLost, DeviceUnavailable, WispError
from service.http.app import Engine, create_app
from service.http.health import GPU_FAILURES, Health
from service.models import loaded as models
from service.models.residence import Residence
from service.models.target import choose_target
from service.transcription.transcriber import Options
from tests.support import synthetic
from tests.support.serving import (
    HOSTILE_GUEST,
    LOOP,
    assert_error,
    engine_for,
    post,
    ready,
    served,
    settings_for,
    tone_audio,
    wav,
)
from tests.support.waiting import until


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    try:
        choose_target("gpu")
    except DeviceUnavailable as error:
        pytest.skip(str(error))
    with engine_for(settings_for(folder, target="gpu")) as engine:
        yield ready(engine)


def lose(engine: Engine) -> None:
    """Destroy the device between two of its jobs."""
    assert engine.transcriber is not None
    loaded = engine.transcriber.model._loaded.thing
    assert loaded is not None
    device = cast(Any, loaded.kernels)._device
    device.run(device.handle.destroy)


def test_a_lost_device_is_reported_and_replaced_for_the_next_request(engine: Engine) -> None:
    client, held = TestClient(create_app(engine)), engine.device_bytes()
    for _ in range(2):
        lose(engine)
        response = post(client)
        assert "GPU" in assert_error(response, 503, "device_lost")
        assert "wisp_device_failures 1.0" in client.get("/metrics").text
        assert response.headers["retry-after"] == "1"
        assert post(client).json()["text"] == synthetic.SENTENCE
        assert "wisp_device_failures 0.0" in client.get("/metrics").text
        assert engine.device_bytes() == held, "nothing of the lost one is kept"
        assert client.get("/readyz").status_code == 200
        assert client.get("/healthz").status_code == 200


def test_a_client_that_tries_again_notices_nothing(engine: Engine) -> None:
    with served(engine) as url:
        lose(engine)
        client = openai.OpenAI(base_url=url, api_key="unused", max_retries=2)
        assert client.audio.transcriptions.create(model="whisper-1", file=wav(1.0)).text == synthetic.SENTENCE


def test_all_requests_on_a_lost_device_get_an_error(engine: Engine) -> None:
    transcriber = engine.transcriber
    assert transcriber is not None
    jobs = [transcriber.submit(tone_audio(3.0), Options()).future for _ in range(6)]
    lose(engine)
    found = []
    for job in jobs:
        try:
            found.append(job.result(300).text)
        except WispError as error:
            found.append(str(error.code))
    assert set(found) <= {synthetic.SENTENCE, "device_lost"} and "device_lost" in found
    assert transcriber.transcribe(tone_audio(1.0), Options()).text == synthetic.SENTENCE
    assert transcriber.model.unload() and engine.device_bytes() == 0


def test_readiness_brings_a_lost_device_back(engine: Engine) -> None:
    client = TestClient(create_app(engine))
    lose(engine)
    assert_error(post(client), 503, "device_lost")
    assert not engine.is_loaded()
    until(lambda: client.get("/readyz").status_code == 200, "the server is ready")
    assert engine.is_loaded()


def test_a_gpu_that_stays_away_requires_a_restart(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(adapter: str) -> None:
        raise DeviceError(f"no {adapter} adapter")

    assert engine.transcriber is not None
    client, model = TestClient(create_app(engine)), engine.transcriber.model
    lose(engine)
    with monkeypatch.context() as patched:
        patched.setattr("kernels.webgpu.device.open_device", none)
        patched.setattr(models, "REOPEN_S", 0.0)
        for n_failures in range(1, GPU_FAILURES + 1):
            assert client.get("/healthz").status_code == 200
            assert_error(post(client), 503, "device_lost")
            assert model.device_failures == n_failures
        assert_error(client.get("/readyz"), 503, "not_ready")
        assert "restart the server" in assert_error(client.get("/healthz"), 503, "not_ready")
        patched.setattr(models, "REOPEN_S", 3600.0)
        assert_error(post(client), 503, "device_lost")
        n_failures = model.device_failures
        assert_error(post(client), 503, "device_lost")
        assert model.device_failures == n_failures, "it is not tried again at once"
    model._reopen_at = 0.0
    assert post(client).json()["text"] == synthetic.SENTENCE
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_a_driver_that_lists_no_adapters_any_more_is_a_gpu_that_stays_away(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise RuntimeError("the loader fails")

    assert engine.transcriber is not None
    client, model = TestClient(create_app(engine)), engine.transcriber.model
    lose(engine)
    assert_error(post(client), 503, "device_lost")
    monkeypatch.setattr("wgpu.gpu.enumerate_adapters_sync", gone)
    response = post(client)
    assert_error(response, 503, "device_lost")
    assert model.device_failures == 2 and response.headers["retry-after"] == f"{models.REOPEN_S:.0f}"


def test_clients_learn_when_the_gpu_may_be_reopened(engine: Engine) -> None:
    assert engine.transcriber is not None
    model = engine.transcriber.model
    assert model.unload()
    model._reopen_at = time.monotonic() + 3599.5
    with pytest.raises(DeviceLost) as raised, model.in_use():
        pass
    assert raised.value.headers["Retry-After"] == "3600"


def test_success_on_a_discarded_device_does_not_count(engine: Engine) -> None:
    assert engine.transcriber is not None
    model = engine.transcriber.model
    with model.in_use():
        lose(engine)
        with pytest.raises(DeviceLost), model.in_use():
            raise DeviceError("it is gone")
    assert model.device_failures == 1
    with model.in_use():
        pass
    assert model.device_failures == 0


def test_a_guest_that_can_never_load_requires_a_restart(folder: Path) -> None:
    with engine_for(settings_for(folder), guest="no guest at all") as engine:
        client = TestClient(create_app(engine))
        assert client.get("/healthz").status_code == 200
        ready(engine)
        assert "restart the server" in assert_error(client.get("/healthz"), 503, "not_ready")


def test_a_hanging_computation_requires_a_restart(folder: Path) -> None:
    with engine_for(settings_for(folder, workers=1, probe_limit_s=0.1), guest=HOSTILE_GUEST) as engine:
        app = create_app(ready(engine))
        health: Health = app.state.health
        client, transcriber = TestClient(app), engine.transcriber
        assert transcriber is not None
        stuck = transcriber.submit(tone_audio(1.0), Options(prompt=LOOP))
        until(lambda: transcriber.computing.n_held, "the job computes")
        health.hang_s = 0.0
        assert client.get("/healthz").status_code == 200, "nobody wants to compute"
        transcriber.proven_at = float("-inf")
        assert_error(client.get("/readyz"), 503, "not_ready")
        assert "Nothing has been computed" in assert_error(client.get("/healthz"), 503, "not_ready")
        health.hang_s = 3600.0
        assert client.get("/healthz").status_code == 200
        stuck.cancel()
        stuck.future.exception(60)


def test_a_discarded_model_is_closed_with_its_last_user() -> None:
    made, unloaded = iter(["first", "second", "third"]), list[str]()
    residence = Residence(load=lambda: next(made), unload=unloaded.append)
    with residence.in_use() as outer, residence.in_use():
        assert residence.discard(outer) and not residence.discard(outer)
        assert not residence.unload(), "there is nothing in memory for the next user"
        with residence.in_use() as newer:
            assert newer == "second"
        assert unloaded == []
    assert unloaded == ["first"] and residence.thing == "second"
    residence.close()
    assert unloaded == ["first", "second"]


def test_it_is_a_server_fault_that_clients_may_retry() -> None:
    assert (DeviceLost().status, DeviceLost().type) == (503, "server_error")
    assert "x-should-retry" not in DeviceLost().headers
    assert "server" not in str(DeviceLost()), "wisp transcribe says it too"
