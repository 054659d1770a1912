"""The page's files as a browser gets them: types, caching, what they may do, and nothing else of the disk."""

import re

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from service.http import routes, web_page
from service.http.request_log import PAGE_POLICY, RequestLog
from tests.conftest import ROOT
from tests.support.serving import assert_error


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(RequestLog(Starlette(routes=routes.ROUTES, exception_handlers=routes.EXCEPTION_HANDLERS)))


def test_the_page_is_at_the_root_and_may_load_only_what_this_server_has(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200 and "<title>Wisp" in response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == PAGE_POLICY
    assert client.head("/").status_code == 200


def test_every_file_of_the_page_has_the_type_that_browsers_insist_on(client: TestClient) -> None:
    types = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    named = re.findall(r'(?:src|href)="(web/[^"]+)"', client.get("/").text)
    imported = {
        f"web/{name}"
        for path in (ROOT / "service" / "web").glob("*.js")
        for name in re.findall(r'(?:from "\./|new URL\(")([\w-]+\.js)"', path.read_text())
    }
    assert len(named) >= 5 and len(imported) >= 10
    for path in {*named, *imported}:
        response = client.get(f"/{path}")
        assert response.status_code == 200, path
        assert response.headers["content-type"] == types[path[path.rindex(".") :]]
    assert {f"web/{name}" for name in web_page.page_files()} == {*named, *imported, "web/index.html"}, (
        "a file is unused"
    )


def test_a_browser_asks_again_and_gets_a_body_only_when_it_has_changed(client: TestClient) -> None:
    first = client.get("/web/app.js")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for sent in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = client.get("/web/app.js", headers={"if-none-match": sent})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get("/web/app.js", headers={"if-none-match": '"other"'}).content == first.content
    assert client.get("/web/card.js").headers["etag"] != etag


@pytest.mark.parametrize("path", ["nothing.js", "..%2frouter.py", "%2e%2e/errors.py", "..\\errors.py", ".", "%00"])
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert_error(client.get(f"/web/{path}"), 404, "not_found")


def test_the_page_fetches_nothing_from_elsewhere() -> None:
    for path in (ROOT / "service" / "web").iterdir():
        addresses = re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}", path.read_text())
        assert set(addresses) <= {"http://www.w3.org"}, path.name  # SVG's name, not an address that is asked
