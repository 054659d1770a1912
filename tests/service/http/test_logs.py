"""The JSON log: one object per line, with the request's ID, and nothing of the request's content or transcript."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.http.app import create_app
from service.http.logs import dress
from service.http.request_log import RequestLog
from tests.support import synthetic
from tests.support.serving import PATH, engine_for, ready, settings_for, wav


@contextmanager
def logged(log_format: str) -> Iterator[io.StringIO]:
    """The output of a handler with this formatter, at every level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    dress(handler, log_format)
    logger = logging.getLogger("wisp")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_request_can_be_followed_by_its_id_and_nothing_else_is_logged(tmp_path: Path) -> None:
    folder = synthetic.save_synthetic(tmp_path / "synthetic")
    secrets = ["a-very-secret-prompt", "secret-name.wav", "secret-key", synthetic.SENTENCE, "secret-query"]
    settings = settings_for(folder, api_keys="secret-key")
    with (
        engine_for(settings) as engine,
        TestClient(create_app(ready(engine))) as client,
        logged("json") as stream,
    ):
        answer = client.post(
            f"{PATH}?secret-query=1",
            headers={"x-request-id": "trace-1", "Authorization": "Bearer secret-key"},
            data={"prompt": secrets[0], "language": "en"},
            files={"file": (secrets[1], wav(1.0))},
        )
    assert answer.headers["x-request-id"] == "trace-1" and answer.json()["text"] == synthetic.SENTENCE
    lines: list[dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {line["request_id"] for line in lines} == {"trace-1"}
    assert all(line["time"].endswith("Z") and line["level"] == "info" for line in lines)
    assert any(line["message"].startswith("transcribed 1.00 s") for line in lines)
    access = next(line for line in lines if "path" in line)
    assert (access["method"], access["path"], access["status"]) == ("POST", PATH, 200) and access["seconds"] > 0
    assert not [secret for secret in secrets if secret in stream.getvalue()]


@pytest.mark.parametrize("sent", ["", "two words", "x" * 129, 'quote"', "ümlaut".encode(), "line%0abreak"])
def test_an_invalid_id_is_replaced(sent: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    answer = TestClient(RequestLog(app)).get("/", headers={"x-request-id": sent})
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_failure_is_one_line_with_its_traceback() -> None:
    with logged("json") as stream:
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            logging.getLogger("wisp").exception("it %s", "failed")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["level"] == "error" and entry["message"] == "it failed"
    assert "RuntimeError: broken" in entry["exception"]


def test_lines_for_people_have_the_id_too() -> None:
    with logged("console") as stream:
        logging.getLogger("wisp").info("hello")
    assert stream.getvalue().endswith(" INFO - hello\n")
