"""Many models in one server: each request is answered by the one it names, within the memory there is for them."""

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kernels.checkpoints.load import Checkpoint
from service.errors import ModelError, NotReady
from service.http.app import create_app
from service.http.health import Health
from service.models import loaded
from service.transcription.engine import Engine
from service.transcription.transcriber import Options, Segment, Transcriber
from tests.support import synthetic
from tests.support.serving import (
    PATH,
    assert_error,
    engine_for,
    hold_loading,
    post,
    ready,
    settings_for,
    tone_audio,
    wav,
)
from tests.support.waiting import until

GERMAN = [{"code": "de"}]  # what the multilingual model hears in everything


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an English-only model, a multilingual one and a broken one."""
    folder = tmp_path_factory.mktemp("many")
    synthetic.save_synthetic(folder / "one_en")
    synthetic.save_synthetic(folder / "both", multilingual=True)
    shutil.copytree(folder / "both", folder / "broken")
    (folder / "broken" / "model.safetensors").write_bytes(b"no weights")
    return folder


@contextmanager
def serving(models: Path, **changes: Any) -> Iterator[tuple[TestClient, Engine]]:
    settings = settings_for(models / "one_en", models_dir=str(models), **changes)
    with engine_for(settings) as engine, TestClient(create_app(ready(engine))) as client:
        yield client, engine


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[TestClient]:
    with serving(models) as (client, _):
        yield client


def estimated_bytes(engine: Engine) -> int:
    """What the default's estimate is, which is about the same for all small models."""
    assert engine.transcriber is not None
    return engine.transcriber.model.occupant.n_bytes


def test_each_request_is_answered_by_its_model(client: TestClient) -> None:
    """40 at 8 at once."""
    with ThreadPoolExecutor(8) as pool:
        asked = ["both" if number % 3 else "one.en" for number in range(40)]
        answers = list(pool.map(lambda name: post(client, model=name), asked))
    assert [answer.status_code for answer in answers] == [200] * 40
    assert [answer.json()["languages"] == GERMAN for answer in answers] == [name == "both" for name in asked]
    assert {answer.json()["text"] for answer in answers} == {synthetic.SENTENCE}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "whisper-1",  # LiteLLM, the AI SDK, LangChain
        "gpt-4o-transcribe",  # Pipecat
        "gpt-4o-mini-transcribe",  # LiveKit
        "whisper-large-v3-turbo",  # Groq
        "gpt-realtime-whisper",
        "gpt-live-transcribe",
    ],
)
def test_the_defaults_of_clients_mean_the_default_model(client: TestClient, name: str) -> None:
    assert post(client, model=name).json()["languages"] == [{"code": "en"}]


def test_all_are_listed_with_what_is_known_of_them(client: TestClient, models: Path) -> None:
    post(client, model="both")
    listed = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"] if "alias_of" not in entry}
    assert next(iter(listed)) == "one_en" and {"both", "broken"} <= set(listed)
    assert listed["one_en"]["languages"] == ["en"] and listed["both"]["languages"] == ["de", "en"]
    assert listed["both"]["size"] == sum(path.stat().st_size for path in (models / "both").iterdir())
    assert listed["both"]["loaded"] and not listed["broken"]["loaded"] and "languages" not in listed["broken"]
    assert listed["both"]["source"] == "models folder" and listed["both"]["licence"] is None
    assert client.get("/v1/models/both").json() == listed["both"]


def test_an_unknown_name_is_answered_with_those_there_are(client: TestClient) -> None:
    for answer in (post(client, model="large-v9"), client.get("/v1/models/large-v9")):
        message = assert_error(answer, 404, "model_not_found", "model")
        assert "both" in message and "one_en" in message


def test_a_broken_model_fails_its_own_requests_until_its_files_change(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(models) as (client, _):
        with caplog.at_level(logging.ERROR):
            message = assert_error(post(client, model="broken"), 503, "model_broken", "model")
        assert str(models) not in message and "safetensors" not in message
        assert "model broken:" in caplog.text and "model.safetensors" in caplog.text
        caplog.clear()
        answer = post(client, model="broken")
        assert_error(answer, 503, "model_broken", "model")
        assert answer.headers["x-should-retry"] == "false" and not caplog.text, "it is read once"
        assert post(client).status_code == post(client, model="both").status_code == 200
        assert client.get("/readyz").status_code == client.get("/healthz").status_code == 200
        try:
            shutil.copy(models / "both" / "model.safetensors", models / "broken" / "model.safetensors")
            assert post(client, model="broken").json()["languages"] == GERMAN
        finally:
            (models / "broken" / "model.safetensors").write_bytes(b"no weights")


def test_what_breaks_when_it_is_loaded_fails_its_own_requests(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(models) as (client, engine):
        assert post(client, model="both").status_code == 200
        entry = engine.served.catalogue.find("both")
        assert entry is not None and engine.served.unload(entry)

        def refuse(spec: Any) -> Checkpoint:
            raise ModelError("The model 'both' cannot be loaded: it is damaged.")

        monkeypatch.setattr(loaded, "read_checkpoint", refuse)
        assert_error(post(client, model="both"), 503, "model_broken", "model")
        assert post(client).status_code == 200
        monkeypatch.undo()
        assert post(client, model="both").status_code == 200


def test_requests_share_one_load(models: Path) -> None:
    with serving(models) as (client, engine):
        loads: list[str] = []
        engine.shared.model_observers.append(lambda name, seconds: loads.append(name) if seconds is not None else None)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: post(client, model="both"), range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8
        assert loads == ["both"]


def test_requests_of_other_models_go_on_while_one_is_loaded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(models, workers=1) as (client, _):
        begun, may_end = hold_loading(monkeypatch)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post, client, model="both")
            assert begun.wait(60)
            assert post(client).json()["languages"] == [{"code": "en"}], "with its one turn"
            may_end.set()
            assert waiting.result(60).json()["languages"] == GERMAN


def test_within_a_budget_for_one_they_alternate_and_none_fails(models: Path) -> None:
    with serving(models) as (_, engine):
        budget = int(estimated_bytes(engine) * 1.2)
    with serving(models, model_memory=budget) as (client, engine):
        taken: list[int] = []

        def note(name: str, seconds: float | None) -> None:
            taken.append(sum(n_bytes for _, _, n_bytes in engine.models()))

        engine.shared.model_observers.append(note)
        with ThreadPoolExecutor(8) as pool:
            asked = ["both" if number % 2 else "one.en" for number in range(40)]
            answers = list(pool.map(lambda name: post(client, model=name), asked))
        assert [answer.status_code for answer in answers] == [200] * 40
        assert [answer.json()["languages"] == GERMAN for answer in answers] == [name == "both" for name in asked]
        assert sum(is_loaded for _, is_loaded, _ in engine.models()) == 1
        assert len(taken) >= 3 and max(taken) <= budget
        assert client.get("/readyz").status_code == 200


class Long:
    """A long transcription that computes until it may end."""

    def __init__(self, transcriber: Transcriber) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.run = transcriber.submit(tone_audio(150.0), Options(), self._gate)
        assert self.begun.wait(60)

    def _gate(self, segment: Segment) -> None:
        self.begun.set()
        assert self.may_end.wait(60)

    def end(self) -> None:
        self.may_end.set()
        self.run.cancel()
        assert self.run.future.exception(60) is not None


def test_short_requests_pass_any_number_that_wait_for_room(models: Path) -> None:
    changes = {"workers": 2, "open_jobs": 2}
    with serving(models, **changes) as (_, engine):
        budget = int(estimated_bytes(engine) * 1.2)
    with serving(models, model_memory=budget, **changes) as (client, engine), ThreadPoolExecutor(13) as pool:
        assert engine.transcriber is not None
        long = Long(engine.transcriber)
        try:
            waiting = [pool.submit(post, client, model="both") for _ in range(12)]
            until(lambda: engine.transcriber.model.room.n_waiting() == 2, "two wait for room")  # type: ignore[union-attr]
            for _ in range(3):
                assert pool.submit(post, client).result(60).json()["languages"] == [{"code": "en"}]
            assert not any(answer.done() for answer in waiting)
        finally:
            long.end()
        assert [answer.result(60).json()["languages"] for answer in waiting] == [GERMAN] * 12


def test_a_probe_that_waits_for_room_is_no_failure(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(models) as (_, engine):
        budget = int(estimated_bytes(engine) * 1.2)
    with serving(models, model_memory=budget) as (client, engine):
        assert post(client, model="both").status_code == 200
        default, other = engine.served.transcribers()
        long = Long(other)
        try:
            health = Health(engine, fresh_s=0.0, limit_s=60.0, hang_s=0.2)
            default.proven_at = default.moved_at = float("-inf")
            probe = health._begin(default)
            assert probe is not None
            until(lambda: default.model.room.n_waiting() == 1, "the probe waits for room")
            health._began_at = float("-inf")
            other.moved_at = time.monotonic()
            health.liveness()
            other.moved_at = float("-inf")
            with pytest.raises(NotReady, match="Nothing has been computed"):
                health.liveness()
            asyncio.run(health.readiness())
            probe.join(60)
            assert not probe.is_alive() and health._failed_at == float("-inf")
            health.liveness()
            assert "not ready" not in caplog.text
        finally:
            long.end()
        assert post(client).status_code == 200


def test_a_model_that_can_never_fit_is_refused_with_the_figures(models: Path) -> None:
    with serving(models) as (_, engine):
        budget = estimated_bytes(engine) * 2
    with serving(models, model_memory=budget) as (client, _):
        message = assert_error(post(client, model="embedded"), 400, "model_too_large", "model")
        assert "'embedded' takes about" in message and f"{budget / 1e6:.0f} MB here (WISP_MODEL_MEMORY)" in message
        assert post(client).status_code == post(client, model="both").status_code == 200


def test_a_hundred_loads_and_unloads_leave_nothing(models: Path) -> None:
    """Each of them unloads the other."""
    with serving(models) as (_, engine):
        budget = int(estimated_bytes(engine) * 1.2)
    with serving(models, model_memory=budget) as (client, engine):
        for _ in range(10):
            assert post(client, model="both").status_code == post(client).status_code == 200
        n_threads, before = threading.active_count(), resident_kilobytes()
        for _ in range(50):
            assert post(client, model="both").status_code == post(client).status_code == 200
        assert resident_kilobytes() - before < 20_000
        assert threading.active_count() <= n_threads + 8


def resident_kilobytes() -> int:
    """Of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


# English only


@pytest.mark.parametrize(
    "fields", [{"language": "de"}, {"model": "whisper-1", "language": "de"}, {"languages[]": "de"}]
)
def test_an_english_only_default_names_the_model_that_knows_the_language(client: TestClient, fields: Any) -> None:
    message = assert_error(post(client, **fields), 400, "unsupported_value", [*fields][-1])
    assert "English only" in message and "This server's both can: send model=both." in message


def test_so_it_does_where_it_is_named_itself_or_a_translation_is_wanted(client: TestClient) -> None:
    message = assert_error(post(client, model="one.en", language="de"), 400, "unsupported_value", "language")
    assert "send model=both" in message
    answer = client.post("/v1/audio/translations", files={"file": wav(1.0)})
    assert "send model=both" in assert_error(answer, 400, "unsupported_value", "model")
    answer = client.post("/v1/audio/translations", data={"model": "both"}, files={"file": wav(1.0)})
    assert answer.json()["text"] == "what"


def test_a_language_that_none_knows_is_refused_plainly(client: TestClient) -> None:
    message = assert_error(post(client, language="fr"), 400, "unsupported_value", "language")
    assert "send model" not in message


def test_a_language_before_the_model_is_no_reason_to_refuse(client: TestClient) -> None:
    assert client.post(PATH, data={"language": "de", "model": "both"}, files={"file": wav(1.0)}).status_code == 200


def test_it_is_used_where_the_setting_says_so(models: Path) -> None:
    with serving(models, route_languages="yes") as (client, _):
        assert post(client, language="de").json()["languages"] == GERMAN
        assert post(client, model="whisper-1", language="de").json()["languages"] == GERMAN
        assert post(client, language="en").json()["languages"] == [{"code": "en"}]
        assert_error(post(client, model="one_en", language="de"), 400, "unsupported_value", "language")
        answer = client.post("/v1/audio/translations", files={"file": wav(1.0)})
        assert answer.json()["text"] == "what"


def test_the_default_is_not_kept_from_loading_by_lists(models: Path) -> None:
    settings = settings_for(models / "one_en", models_dir=str(models))
    with engine_for(settings) as engine:
        client = TestClient(create_app(engine))  # without its lifespan: nothing is loaded
        listed = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
        assert "both" in listed and "languages" not in listed["both"]


def test_metrics_tell_the_models_apart(models: Path) -> None:
    with serving(models) as (client, engine):
        assert post(client, model="both").status_code == 200
        entry = engine.served.catalogue.find("both")
        assert entry is not None and engine.served.unload(entry)
        text = client.get("/metrics").text
        for line in (
            'wisp_transcriptions_total{model="both",outcome="done"} 1.0',
            'wisp_transcriptions_total{model="one_en",outcome="done"} 0.0',
            'wisp_model_load_seconds_count{model="both"} 1.0',
            'wisp_model_unloads_total{model="both"} 1.0',
            'wisp_model_loaded{model="both"} 0.0',
            'wisp_model_loaded{model="one_en"} 1.0',
            'wisp_model_memory_bytes{model="both"} 0.0',
        ):
            assert line in text, line
        post(client, model="made-up")
        assert "made-up" not in client.get("/metrics").text


def test_idle_models_leave_and_come_back(models: Path) -> None:
    with serving(models, idle_unload_s=3600.0) as (client, engine):
        assert post(client, model="both").status_code == 200
        engine.shared.unload_idle(0.0)
        assert not any(is_loaded for _, is_loaded, _ in engine.models())
        assert client.get("/readyz").status_code == 200
        assert post(client).status_code == post(client, model="both").status_code == 200
