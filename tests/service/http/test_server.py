"""A server that is told to stop: what its clients get, and how soon it ends."""

import json
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from service.http.app import Engine, create_app
from service.http.server import Server
from tests.support import serving, synthetic
from tests.support.processes import server_process
from tests.support.serving import PATH, assert_error, engine_for, events, ready, settings_for, wav
from tests.support.waiting import until

LONG = wav(1800.0, rate=8000)
STOPPING = "The server is stopping."


@contextmanager
def served(engine: Engine, grace_s: float) -> Iterator[tuple[Server, str]]:
    """A server on a port of its own, and its address; at the end it has stopped."""
    app = create_app(engine)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app, app.state.service.under_way, grace_s=grace_s)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def first_event_then(url: str, act: threading.Event, begun: threading.Event) -> str:
    """Stream a long file; sets `begun` with the first event. The whole body: httpx2 raises for one that breaks off."""
    form = {"data": {"stream": "true"}, "files": {"file": ("a.wav", LONG)}}
    with httpx2.stream("POST", url + PATH, timeout=60, **form) as response:  # type: ignore[arg-type]
        body = ""
        for text in response.iter_text():
            body += text
            if "data: " in body:  # a comment may come first
                begun.set()
                act.wait(60)
    return body


@pytest.mark.parametrize("how", ["grace is over", "a second Ctrl-C"])
def test_a_stream_given_up_ends_with_an_error_event(folder: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    grace_s = 0.0 if how == "grace is over" else 3600.0
    begun, stopped = threading.Event(), threading.Event()
    with (
        engine_for(settings_for(folder)) as engine,
        ThreadPoolExecutor(1) as aside,
        served(ready(engine), grace_s) as (server, url),
    ):
        body = aside.submit(first_event_then, url, stopped, begun)
        assert begun.wait(60)
        server.handle_exit(signal.SIGINT, None)
        if grace_s:
            server.handle_exit(signal.SIGINT, None)
        stopped.set()
        told = events(body.result(60))
    assert told[0]["type"] == "transcript.text.delta"
    assert told[-1]["error"]["message"] == STOPPING and told[-1]["error"]["code"] == "not_ready"
    assert f"the stream ends with an error: {STOPPING}" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


def test_a_plain_request_given_up_is_told_so(folder: Path) -> None:
    with (
        engine_for(settings_for(folder), guest=serving.HOSTILE_GUEST) as engine,
        ThreadPoolExecutor(1) as aside,
        served(ready(engine), 0.0) as (server, url),
    ):
        form = {"data": {"prompt": serving.LOOP}, "files": {"file": ("a.wav", wav(0.5))}}
        answer = aside.submit(httpx2.post, url + PATH, timeout=60, **form)  # type: ignore[arg-type]
        until(lambda: server.under_way, "the guest runs, without end")
        server.handle_exit(signal.SIGTERM, None)
        assert assert_error(answer.result(60), 503, "not_ready") == STOPPING


def test_a_request_under_way_is_finished_first(folder: Path) -> None:
    with (
        engine_for(settings_for(folder)) as engine,
        ThreadPoolExecutor(1) as aside,
        served(ready(engine), 3600.0) as (server, url),
    ):
        answer = aside.submit(httpx2.post, url + PATH, timeout=60, files={"file": ("a.wav", wav(60.0))})
        until(lambda: server.server_state.tasks, "the request is under way")
        server.handle_exit(signal.SIGTERM, None)
        assert answer.result(60).status_code == 200


def test_a_second_ctrl_c_ends_the_process_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    with server_process(folder, tmp_path) as server, ThreadPoolExecutor(1) as aside:
        begun, stopped = threading.Event(), threading.Event()
        body = aside.submit(first_event_then, server.url, stopped, begun)
        assert begun.wait(60)
        server.signal(signal.SIGINT)
        server.wait_for("stopping: 1 request may take 20 s more")
        server.signal(signal.SIGINT)
        stopped.set()
        assert json.loads(body.result(60).split("data: ")[-1])["error"]["message"] == STOPPING
        assert server.end() == 130
    assert "stopping: cancelled 1 request" in server.log
    assert "Traceback" not in server.log and "ERROR" not in server.log, server.log


def test_sigterm_in_mid_stream_lets_the_stream_end_whole_and_nobody_else_in(folder: Path, tmp_path: Path) -> None:
    with server_process(folder, tmp_path, grace_s=600) as server, ThreadPoolExecutor(1) as aside:
        begun, refused = threading.Event(), threading.Event()
        body = aside.submit(first_event_then, server.url, refused, begun)
        assert begun.wait(60)
        server.signal(signal.SIGTERM)
        server.wait_for("stopping: 1 request may take 600 s more")
        with pytest.raises(httpx2.ConnectError):
            httpx2.post(server.url + PATH, files={"file": ("a.wav", wav(1.0))})
        refused.set()
        *deltas, done = events(body.result(60))
        server.end()
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    n_windows = 1800 // synthetic.WINDOW_SECONDS
    assert done["type"] == "transcript.text.done" and done["text"] == " ".join([synthetic.SENTENCE] * n_windows)
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert server.log.rstrip().endswith("stopped") and "Traceback" not in server.log, server.log
