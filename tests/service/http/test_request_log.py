"""What every response carries: safe headers, and for pages a policy that lets them run and ask this server only."""

import pytest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from service.http.request_log import RequestLog


def headers_of(response: Response) -> dict[str, str]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await response(scope, receive, send)

    return dict(TestClient(RequestLog(app)).get("/").headers)


@pytest.mark.parametrize("kind", [JSONResponse, PlainTextResponse, HTMLResponse])
def test_browsers_keep_to_the_type_they_are_told(kind: type[Response]) -> None:
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
