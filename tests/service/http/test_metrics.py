"""Prometheus metrics: requests and transcriptions are counted, under labels with few values."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.errors import QueueFull
from service.http.app import create_app
from service.transcription.run import STAGES
from service.transcription.transcriber import Options
from tests.support.serving import (
    HOSTILE_GUEST,
    LOOP,
    PATH,
    assert_error,
    engine_for,
    post,
    ready,
    settings_for,
    tone_audio,
    wav,
)
from tests.support.waiting import until

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with engine_for(settings_for(folder)) as engine, TestClient(create_app(ready(engine))) as client:
        yield client


def read(client: TestClient) -> Series:
    answer = client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


def test_a_transcription_is_counted_with_its_stages(client: TestClient) -> None:
    before = read(client)
    assert value(before, "wisp_transcriptions_total", model="synthetic", outcome="done") == 0, (
        "what Wisp asks itself is no one's request"
    )
    assert post(client, wav(7.0)).status_code == 200
    after = read(client)
    assert value(after, "wisp_requests_total", route=PATH, status="200") == 1
    assert value(after, "wisp_request_seconds_count", route=PATH) == 1
    assert value(after, "wisp_transcriptions_total", model="synthetic", outcome="done") == 1
    assert value(after, "wisp_audio_seconds_total", model="synthetic") == 7.0
    assert value(after, "wisp_tokens_total", model="synthetic") > 0
    assert value(after, "wisp_real_time_factor_count", model="synthetic") == 1
    for stage in ("upload", "wait", *STAGES):
        assert value(after, "wisp_stage_seconds_count", stage=stage) == 1, stage
    assert value(after, "wisp_model_loaded", model="synthetic") == 1
    assert value(after, "wisp_jobs_running") == value(after, "wisp_jobs_waiting") == 0
    assert value(after, "wisp_device_memory_bytes") == 0
    assert value(after, "process_resident_memory_bytes") > 0


def test_refused_requests_are_counted(client: TestClient) -> None:
    assert_error(post(client, b"no sound"), 400, "unreadable_audio", "file")
    after = read(client)
    assert value(after, "wisp_requests_total", route=PATH, status="400") == 1
    assert value(after, "wisp_transcriptions_total", model="synthetic", outcome="refused") == 1
    assert value(after, "wisp_audio_seconds_total", model="synthetic") == 0


def test_paths_that_clients_make_up_are_one_label(client: TestClient) -> None:
    for number in range(20):
        client.get(f"/made-up-{number}")
        client.get(f"/v1/models/made-up-{number}")
        client.request(f"MADE{number}", "/healthz")
    names = read(client)
    assert "made" not in str(names).lower()
    assert value(names, "wisp_requests_total", route="none", status="404") == 20
    assert value(names, "wisp_requests_total", route="/v1/models/{id:path}", status="404") == 20


def test_a_full_queue_is_reported(folder: Path) -> None:
    settings = settings_for(folder, workers=1, open_jobs=1, queue_length=1)
    with engine_for(settings, guest=HOSTILE_GUEST) as engine, TestClient(create_app(ready(engine))) as client:
        transcriber = engine.transcriber
        assert transcriber is not None
        runs = [transcriber.submit(tone_audio(1.0), Options(prompt=LOOP)) for _ in range(2)]
        until(lambda: transcriber.computing.n_held, "the first job computes")
        during = read(client)
        assert (value(during, "wisp_jobs_running"), value(during, "wisp_jobs_waiting")) == (1, 1)
        assert_error(post(client), 429, "queue_full")
        assert value(read(client), "wisp_rejected_total") == 1
        with pytest.raises(QueueFull):
            transcriber.admission.check_room()
        for run in reversed(runs):
            run.cancel()
        assert runs[0].future.exception(60)
        until(
            lambda: value(read(client), "wisp_transcriptions_total", model="synthetic", outcome="cancelled") == 2,
            "both are counted, which follows the answer",
        )


@pytest.mark.parametrize(("who", "status"), [("guarded", 401), ("public", 200), ("off", 401)])
def test_who_may_read_is_a_setting(folder: Path, who: str, status: int) -> None:
    settings = settings_for(folder, api_keys="alice", metrics=who)
    with engine_for(settings) as engine, TestClient(create_app(engine)) as client:
        assert client.get("/metrics").status_code == status
        with_key = client.get("/metrics", headers={"Authorization": "Bearer alice"}).status_code
        assert with_key == (404 if who == "off" else 200)
