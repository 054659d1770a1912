"""An idle model leaves memory and is reloaded for the next request, on the CPU and on WebGPU."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.errors import DeviceUnavailable, ModelBroken
from service.http.app import Engine, create_app
from service.models.residence import Residence
from service.models.target import choose_target
from service.transcription.transcriber import Options
from tests.support import synthetic
from tests.support.serving import engine_for, post, ready, settings_for, tone_audio
from tests.support.waiting import until


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    try:
        choose_target(request.param)
    except DeviceUnavailable as error:
        pytest.skip(str(error))
    with engine_for(settings_for(folder, target=request.param)) as engine:
        yield ready(engine)


def words(engine: Engine) -> str:
    assert engine.transcriber is not None
    return engine.transcriber.submit(tone_audio(1.0), Options()).future.result(120).text


def test_an_unloaded_model_holds_nothing_and_comes_back_for_a_request(engine: Engine) -> None:
    assert engine.transcriber is not None
    model = engine.transcriber.model
    assert words(engine) == synthetic.SENTENCE
    held = engine.device_bytes()
    assert (held > 0) == (model.target.name == "gpu")
    assert model.unload() and not engine.is_loaded() and engine.device_bytes() == 0
    assert not model.unload()
    assert words(engine) == synthetic.SENTENCE
    # A first decoding's allocations are counted too, so it is as much as before.
    assert engine.is_loaded() and engine.device_bytes() == held


def test_requests_that_come_while_it_is_unloaded_are_served(engine: Engine) -> None:
    assert engine.transcriber is not None
    model = engine.transcriber.model
    ended = threading.Event()
    n_unloaded = 0

    def unload() -> None:
        nonlocal n_unloaded
        while not ended.is_set():
            n_unloaded += model.unload()

    with ThreadPoolExecutor(3) as threads:
        unloading = threads.submit(unload)
        try:
            heard = [*threads.map(words, [engine] * 8)]
        finally:
            ended.set()
        unloading.result(60)
    assert heard == [synthetic.SENTENCE] * 8 and n_unloaded > 0


def test_it_happens_by_itself_after_the_configured_time(folder: Path) -> None:
    settings = settings_for(folder, idle_unload_s=0.01)
    with engine_for(settings) as engine, TestClient(create_app(ready(engine))) as client:
        until(lambda: not engine.is_loaded(), "the model has left memory")
        assert client.get("/readyz").status_code == 200, "it is ready to be loaded"
        assert post(client).json()["text"] == synthetic.SENTENCE


def test_a_model_whose_files_have_gone_is_an_internal_error(tmp_path: Path) -> None:
    folder = synthetic.save_synthetic(tmp_path / "synthetic")
    with engine_for(settings_for(folder)) as engine:
        transcriber = engine.load()
        assert transcriber.model.unload()
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelBroken) as raised:
            transcriber.transcribe(tone_audio(1.0), Options())
        assert str(tmp_path) not in str(raised.value)
        synthetic.save_synthetic(folder)
        assert transcriber.transcribe(tone_audio(1.0), Options()).text == synthetic.SENTENCE


def test_a_closed_residence_loads_nothing() -> None:
    unloaded: list[str] = []
    residence = Residence(load=lambda: "thing", unload=unloaded.append)
    with residence.in_use():
        pass
    residence.close()
    residence.close()
    assert unloaded == ["thing"]
    with pytest.raises(ValueError, match="closed"), residence.in_use():
        pass
