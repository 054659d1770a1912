"""The operator's routes: who may use them, and what they do to models that are there, used, or on their way."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from service.http.app import create_app
from service.models.store import Record
from service.transcription.engine import Engine
from tests.support import synthetic
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.serving import assert_error, engine_for, events, hold_loading, post, ready, served, settings_for, wav
from tests.support.waiting import until

OPERATOR, USER, LIMITED = "operator-1", "user-2", "limited-3"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def models(tmp_path: Path, folder: Path) -> Path:
    """A models folder with one that was pulled and one that was not."""
    models = tmp_path / "models"
    for name in ("pulled", "copied"):
        shutil.copytree(folder, models / name)
    Record("https://hub", "someone/pulled", "5a" * 20, "mit", "2026-01-01", {}).write(models / "pulled")
    return models


@contextmanager
def serving(folder: Path, models: Path, **changes: Any) -> Iterator[tuple[TestClient, Engine]]:
    settings = settings_for(folder, models_dir=str(models), **{"allow_admin_without_key": "yes", **changes})
    with engine_for(settings) as engine, TestClient(create_app(ready(engine))) as client:
        yield client, engine


def pull(client: TestClient, name: str) -> Any:
    return client.post("/v1/models", json={"model": name})


# Who may


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/models"), ("DELETE", "/v1/models/copied"), ("GET", "/api/ps")]
)
def test_only_a_key_that_may_administers(folder: Path, models: Path, method: str, path: str) -> None:
    with serving(folder, models, allow_admin_without_key="no") as (client, _):
        message = assert_error(client.request(method, path, json={}), 403, "administration_refused")
        assert "WISP_ALLOW_ADMIN_WITHOUT_KEY" in message
    keys = models.parent / "keys"
    keys.write_text(f"{OPERATOR} admin\n{USER}\n{LIMITED} models=copied\n")
    with serving(folder, models, api_keys_file=str(keys)) as (client, _):
        assert client.request(method, path).status_code == 401
        for key in (USER, LIMITED):
            answer = client.request(method, path, headers=bearer(key), json={})
            assert "word admin" in assert_error(answer, 403, "administration_refused")
        assert client.request(method, path, headers=bearer(OPERATOR), json={}).status_code in (200, 400)


def test_a_key_may_be_limited_to_models(folder: Path, models: Path) -> None:
    keys = models.parent / "keys"
    keys.write_text(f"{LIMITED} models=Copied,large-v3\n{USER}\n")
    with serving(folder, models, api_keys_file=str(keys)) as (client, _):
        listed = client.get("/v1/models", headers=bearer(LIMITED)).json()["data"]
        assert [entry["id"] for entry in listed] == ["copied"]
        assert len(client.get("/v1/models", headers=bearer(USER)).json()["data"]) > 3
        assert_error(client.get("/v1/models/pulled", headers=bearer(LIMITED)), 403, "model_not_allowed", "model")

        def ask(key: str, **fields: str) -> Any:
            return client.post("/v1/audio/transcriptions", headers=bearer(key), data=fields, files={"file": wav(1.0)})

        assert ask(LIMITED, model="copied").json()["text"] == synthetic.SENTENCE
        for fields in ({}, {"model": "whisper-1"}, {"model": "pulled"}, {"model": "synthetic"}):
            message = assert_error(ask(LIMITED, **fields), 403, "model_not_allowed", "model")
            assert "it is for: Copied, large-v3" in message
        message = assert_error(ask(LIMITED, model="nothing"), 404, "model_not_found", "model")
        assert "pulled" not in message and "copied" in message, "what else there is isn't its business"
        assert ask(USER).status_code == ask(USER, model="pulled").status_code == 200


def test_an_operator_limited_to_models_administers_only_those(folder: Path, models: Path, hub: FakeHub) -> None:
    keys = models.parent / "keys"
    keys.write_text(f"{LIMITED} models=copied admin\n")
    with serving(folder, models, api_keys_file=str(keys), hub=hub.url) as (client, _):
        client.headers |= bearer(LIMITED)
        assert post(client, model="copied").status_code == 200
        assert [entry["name"] for entry in client.get("/api/ps").json()["models"]] == ["copied"]
        assert_error(pull(client, "openai/whisper-tiny.en"), 403, "model_not_allowed", "model")


# Unloading and removing


def test_it_is_unloaded_and_loaded_by_the_next_request(folder: Path, models: Path) -> None:
    with serving(folder, models) as (client, _):
        assert client.delete("/v1/models/copied").json()["unloaded"] is False
        assert post(client, model="copied").status_code == 200
        names = [entry["name"] for entry in client.get("/api/ps").json()["models"]]
        assert names == ["synthetic", "copied"]
        answer = client.delete("/v1/models/copied").json()
        assert answer == {"id": "copied", "object": "model", "deleted": False, "unloaded": True}
        [left] = client.get("/api/ps").json()["models"]
        assert left["name"] == left["model"] == "synthetic" and left["size"] > 0 == left["size_vram"] == left["in_use"]
        assert left["expires_at"].startswith("0001-")
        assert client.delete("/v1/models/synthetic").json()["unloaded"] is True, "the default too"
        assert post(client).status_code == post(client, model="copied").status_code == 200
        assert_error(client.delete("/v1/models/nothing"), 404, "model_not_found", "model")
        assert_error(client.delete("/v1/models/copied?remove=perhaps"), 400, "invalid_value", "remove")


def test_what_was_pulled_is_removed_and_nothing_else(folder: Path, models: Path) -> None:
    with serving(folder, models) as (client, engine):
        assert post(client, model="pulled").status_code == 200
        answer = client.delete("/v1/models/pulled?remove=true").json()
        assert answer["deleted"] is True and not (models / "pulled").exists()
        assert_error(post(client, model="pulled"), 404, "model_not_found", "model")
        assert [found.model.name for found in engine.served.transcribers()] == ["synthetic"]
        for name in ("copied", "synthetic", "whisper-1"):
            answer = client.delete(f"/v1/models/{name}?remove=true")
            assert_error(answer, 409, "model_not_removable")
        assert (models / "copied").is_dir() and folder.is_dir()


def test_one_that_is_in_use_is_neither_unloaded_nor_removed(
    folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(folder, models) as (client, _):
        begun, may_end = hold_loading(monkeypatch)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(post, client, model="pulled")
            assert begun.wait(60)
            for path in ("/v1/models/pulled", "/v1/models/pulled?remove=true"):
                assert "1 transcription;" in assert_error(client.delete(path), 409, "model_in_use")
            may_end.set()
            assert asked.result(60).status_code == 200
        until(lambda: client.delete("/v1/models/pulled?remove=true").status_code == 200, "it is free")


def test_while_it_is_removed_requests_are_told_so(folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder, models) as (client, _):
        begun, may_end = threading.Event(), threading.Event()

        def slow(path: Path) -> None:
            begun.set()
            assert may_end.wait(60)
            shutil.rmtree(path)

        monkeypatch.setattr("service.transcription.served.remove", slow)
        with ThreadPoolExecutor(1) as pool:
            removing = pool.submit(client.delete, "/v1/models/pulled?remove=true")
            assert begun.wait(60)
            assert_error(post(client, model="pulled"), 404, "model_being_removed", "model")
            assert post(client).status_code == 200
            may_end.set()
            assert removing.result(60).status_code == 200
        assert_error(post(client, model="pulled"), 404, "model_not_found", "model")


def test_a_removal_that_fails_leaves_the_model(folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with serving(folder, models) as (client, _):
        monkeypatch.setattr(Path, "rename", refuse)
        assert client.delete("/v1/models/pulled?remove=true").status_code == 500
        monkeypatch.undo()
        assert post(client, model="pulled").status_code == 200


# Pulling


@pytest.fixture
def hub(folder: Path) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.add("openai/whisper-base", folder)
        yield hub


def test_a_pull_tells_how_far_it_is_and_the_model_is_served(folder: Path, models: Path, hub: FakeHub) -> None:
    with serving(folder, models, hub=hub.url) as (client, _):
        assert_error(client.get("/v1/models/base"), 404, "model_not_found", "model")
        answer = pull(client, "base")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        *progress, last = events(answer.text)
        total = sum(path.stat().st_size for path in folder.iterdir())
        assert progress[0] == {"status": "pulling", "model": "base", "completed": 0, "total": total}
        assert (last["status"], last["completed"], last["total"]) == ("success", total, total)
        assert (last["object"]["id"], last["object"]["licence"]) == ("base", "apache-2.0")
        assert post(client, model="openai/whisper-base").json()["text"] == synthetic.SENTENCE
        assert events(pull(client, "openai/whisper-base").text)[-1]["status"] == "success", "it is here already"
        assert client.delete("/v1/models/base?remove=true").json()["deleted"] is True


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "malformed_form", None),
        (b"[]", 400, "malformed_form", None),
        (b"{" * 5000, 400, "malformed_form", None),
        (b"{}", 400, "missing_required_parameter", "model"),
        (b'{"model": ["base"]}', 400, "invalid_value", "model"),
        (b'{"model": "nothing-known"}', 400, "invalid_value", "model"),
        (b'{"model": "../../etc"}', 400, "invalid_value", "model"),
        (b'{"model": "some/body"}', 502, "pull_failed", None),
    ],
)
def test_what_cannot_be_pulled_is_refused(
    folder: Path, models: Path, hub: FakeHub, body: bytes, status: int, code: str, param: str | None
) -> None:
    with serving(folder, models, hub=hub.url) as (client, _):
        assert_error(client.post("/v1/models", content=body), status, code, param)
        assert client.app.state.service.pulls == {}  # type: ignore[attr-defined]


def test_the_default_is_not_pulled_again_under_its_users(models: Path, hub: FakeHub) -> None:
    with serving(models / "pulled", models, hub=hub.url) as (client, _):
        assert "restart" in assert_error(pull(client, "someone/pulled"), 409, "model_not_removable")
        assert_error(pull(client, "someone/whisper_"), 400, "invalid_value", "model")


def test_a_pull_that_fails_ends_with_the_reason(folder: Path, models: Path, hub: FakeHub) -> None:
    hub.wrong["config.json"] = b"something else"
    with serving(folder, models, hub=hub.url) as (client, _):
        answer = pull(client, "base")
        assert answer.status_code == 502 or "error" in events(answer.text)[-1]
        assert_error(client.get("/v1/models/base"), 404, "model_not_found", "model")
        assert client.app.state.service.pulls == {}  # type: ignore[attr-defined]


def test_while_it_is_pulled_requests_are_told_so_and_it_ends_with_its_client(
    folder: Path, models: Path, hub: FakeHub
) -> None:
    hub.stalls = True
    hub.cuts.append(1000)
    with ExitStack() as stack:
        settings = settings_for(folder, models_dir=str(models), allow_admin_without_key="yes", hub=hub.url)
        engine = stack.enter_context(engine_for(settings))
        url = stack.enter_context(served(ready(engine)))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60))
        with client.stream("POST", "/models", json={"model": "base"}) as answer:
            assert answer.status_code == 200 and hub.stalled.wait(60)
            message = assert_error(client.get("/models/base"), 503, "model_being_pulled", "model")
            assert "% of it is here" in message
            again = client.post("/models", json={"model": "base"})
            assert_error(again, 503, "model_being_pulled", "model")
            assert again.headers["retry-after"] == "10"
        hub.closed.set()
        until(lambda: client.get("/models/base").status_code == 404, "the pull has ended")
        assert not (models / "base").exists()
