"""A stream's start: its status and headers come at once, comments during silence, failures with their own status."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.errors import UnreadableAudio
from service.http import jobs
from service.transcription.transcriber import Transcriber
from tests.support import synthetic
from tests.support.serving import assert_error, engine_for, events, ready, served, settings_for, wav


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with engine_for(settings_for(folder)) as engine, served(ready(engine)) as url:
        yield f"{url}/audio/transcriptions"


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Transcriptions wait for this event before they begin, at most a minute; their file may then be called broken."""
    event, whole = threading.Event(), Transcriber.transcribe

    def transcribe(self: Transcriber, recording: Any, options: Any, *further: Any, **named: Any) -> Any:
        assert event.wait(60)
        if options.prompt == "broken":
            raise UnreadableAudio("The audio is broken.")
        return whole(self, recording, options, *further, **named)

    monkeypatch.setattr(Transcriber, "transcribe", transcribe)
    monkeypatch.setattr(jobs, "COMMENT_EVERY_S", 0.02)
    yield event
    event.set()


def stream(url: str, **fields: str) -> Any:
    data = {"stream": "true", **fields}
    return httpx2.stream("POST", url, data=data, files={"file": ("upload", wav(4.0))}, timeout=60)


def test_headers_come_at_once_and_comments_while_nothing_is_said(
    url: str, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FIRST_EVENT_S", 0.02)
    with stream(url) as response:  # the transcription has not begun
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        text = ""
        for piece in response.iter_text():
            text += piece
            if text.count(":\n\n") >= 3:
                release.set()
    assert text.startswith(":\n\n:\n\n:\n\n")
    *deltas, done = events(text)
    assert [event["type"] for event in deltas] == ["transcript.text.delta"] * 2
    assert done["text"] == " ".join([synthetic.SENTENCE] * 2)


def test_a_failure_that_comes_soon_is_a_status(url: str, release: threading.Event) -> None:
    release.set()
    with stream(url, prompt="broken") as response:
        response.read()
        assert_error(response, 400, "unreadable_audio", "file")


def test_a_failure_that_comes_late_is_the_last_event(
    url: str, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FIRST_EVENT_S", 0.02)
    with stream(url, prompt="broken") as response:
        release.set()
        (event,) = events(response.read().decode())
    assert response.status_code == 200 and event["error"]["code"] == "unreadable_audio"


def test_a_client_that_leaves_while_nothing_is_said_ends_its_job(
    url: str, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FIRST_EVENT_S", 0.02)
    ended = threading.Event()
    finish = jobs.Job._finish

    def told(self: jobs.Job) -> None:
        finish(self)
        ended.set()

    monkeypatch.setattr(jobs.Job, "_finish", told)
    with stream(url) as response:
        next(response.iter_raw())
    assert ended.wait(60), "the job went on without its client"
