"""Every response's headers: safe ones, and for pages a policy that limits scripts and requests to this server."""

import asyncio
import json
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from service.http.request_log import RequestLog


def headers_of(response: Response) -> dict[str, str]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await response(scope, receive, send)

    return dict(TestClient(RequestLog(app)).get("/").headers)


@pytest.mark.parametrize("kind", [JSONResponse, PlainTextResponse, HTMLResponse])
def test_browsers_must_not_guess_the_type(kind: type[Response]) -> None:
    assert headers_of(kind("<script>"))["x-content-type-options"] == "nosniff"


def test_a_page_runs_scripts_of_its_own_server_only() -> None:
    headers = headers_of(HTMLResponse("<p>"))
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    for kind in ("script-src", "style-src", "connect-src"):
        assert policy[kind] == "'self'", "no inline code, no other origin"
    assert policy["frame-ancestors"] == "'none'" and "unsafe" not in headers["content-security-policy"]
    assert "microphone=(self)" in headers["permissions-policy"]
    assert "content-security-policy" not in headers_of(PlainTextResponse("<p>"))


@pytest.mark.parametrize("extensions", [{"websocket.http.response": {}}, {}])
def test_a_refused_websocket_is_closed_where_the_server_has_no_words_for_it(extensions: dict[str, Any]) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close", "code": 1000, "reason": ""})  # as routing does for an unknown path

    scope = {"type": "websocket", "path": "/nothing", "headers": [], "extensions": extensions}
    asyncio.run(RequestLog(app)(scope, receive, send))
    if extensions:
        start, body = sent
        assert start["type"] == "websocket.http.response.start" and start["status"] == 404
        assert json.loads(body["body"])["error"]["code"] == "not_found"
    else:
        assert [message["type"] for message in sent] == ["websocket.close"] and sent[0]["code"] == 1008
