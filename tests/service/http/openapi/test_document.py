"""/openapi.json says what the API is: every route, every field, every body; and /docs shows it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route
from starlette.testclient import TestClient

from service.http import routes
from service.http.app import create_app
from service.http.form import table as form_table
from service.http.openapi import document as openapi
from service.http.request_log import PAGE_POLICY
from tests.support.serving import engine_for, ready, settings_for

PAGES = {"/", "/web/{name}", "/docs", "/docs.css", "/openapi.json"}  # for browsers, or the description itself


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with engine_for(settings_for(folder, aliases="whisper-1", unknown_fields="refuse")) as engine:
        yield TestClient(create_app(ready(engine)))


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    response = client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    return body


def form_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    Draft202012Validator.check_schema(schema)
    return dict(schema)


def test_every_route_is_described_and_nothing_else(client: TestClient, document: dict[str, Any]) -> None:
    app: Any = client.app
    served = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in app.routes
        if isinstance(route, Route) and route.include_in_schema and route.path not in PAGES
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == served


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
def test_every_field_is_described_but_those_always_refused(document: dict[str, Any], path: str) -> None:
    schema = form_schema(document, path)
    assert set(schema["properties"]) == {field.wire_name for field in form_table.FIELDS if not field.refusal}
    assert schema["required"] == ["file"] and schema["additionalProperties"] is False
    assert all(field["description"].endswith(".") for field in schema["properties"].values())


@pytest.mark.parametrize(
    ("form", "is_right"),
    [
        ({"file": "x"}, True),
        ({}, False),
        ({"file": "x", "colour": "red"}, False),
        ({"file": "x", "model": "whisper-1", "language": "en", "temperature": 1}, True),
        ({"file": "x", "model": "gpt-5"}, False),
        ({"file": "x", "language": "de"}, False),
        ({"file": "x", "temperature": 1.1}, False),
        ({"file": "x", "stream": True}, True),
        ({"file": "x", "stream": True, "response_format": "srt"}, False),
        ({"file": "x", "timestamp_granularities[]": ["word"]}, False),
        ({"file": "x", "timestamp_granularities[]": ["word"], "response_format": "verbose_json"}, True),
        ({"file": "x", "timestamp_granularities[]": ["segment"]}, True),
        ({"file": "x", "include[]": ["logprobs"]}, True),
        ({"file": "x", "include[]": ["logprobs"], "response_format": "text"}, False),
        ({"file": "x", "include[]": ["logprobs"], "response_format": "verbose_json"}, True),
        ({"file": "x", "chunking_strategy": "auto"}, True),
        ({"file": "x", "chunking_strategy": {"type": "server_vad", "threshold": 0.5}}, True),
        ({"file": "x", "chunking_strategy": {"threshold": 0.5}}, False),
        ({"file": "x", "chunking_strategy": {"type": "server_vad", "colour": 1}}, False),
        ({"file": "x", "keywords[]": ["a"] * 33}, False),
    ],
)
def test_the_description_and_the_reading_agree(document: dict[str, Any], form: dict[str, Any], is_right: bool) -> None:
    assert Draft202012Validator(form_schema(document, "/v1/audio/transcriptions")).is_valid(form) == is_right


def test_a_server_with_keys_says_so_and_one_with_any_alias_takes_any_name(folder: Path) -> None:
    settings = settings_for(folder, api_keys="a-key-of-some-length-1", aliases="gpt-*")
    with engine_for(settings) as engine:
        client = TestClient(create_app(ready(engine)))
        document = client.get("/openapi.json").json()
    assert document["security"] == [{"key": []}]
    assert "401" in document["paths"]["/v1/models"]["get"]["responses"]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert "enum" not in form_schema(document, "/v1/audio/transcriptions")["properties"]["model"]


def test_a_server_that_takes_unknown_fields_says_so(folder: Path) -> None:
    with engine_for(settings_for(folder)) as engine:
        document = TestClient(create_app(ready(engine))).get("/openapi.json").json()
    schema = form_schema(document, "/v1/audio/transcriptions")
    assert schema["additionalProperties"] is True and "enum" not in schema["properties"]["model"]


def test_languages_are_those_of_the_model_once_it_is_loaded(document: dict[str, Any]) -> None:
    assert form_schema(document, "/v1/audio/transcriptions")["properties"]["language"]["enum"] == ["en"]
    loading = openapi.document(["tiny_en"], [], paths={"/v1/audio/transcriptions"})
    assert "de" in form_schema(loading, "/v1/audio/transcriptions")["properties"]["language"]["enum"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = str(document)
    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named <= set(document["components"]["schemas"])
    assert set(document["components"]["schemas"]) - named <= {"Event"}


def test_the_page_shows_every_operation_and_field_and_loads_nothing_from_elsewhere(
    client: TestClient, document: dict[str, Any]
) -> None:
    response = client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == PAGE_POLICY
    for path in document["paths"]:
        assert f"<code>{path}</code>" in response.text
    for field in form_table.FIELDS:
        assert (f"<code>{field.wire_name}</code>" in response.text) == (not field.refusal)
    for anchor in re.findall(r'href="#(\w+)"', response.text):
        assert f'id="{anchor}"' in response.text
    assert not re.search(r"<script|<style|style=|\son\w+=|src=|//", response.text.replace("<!doctype html>", ""))
    sheet = client.get("/docs.css")
    assert sheet.headers["content-type"] == "text/css; charset=utf-8" and "url(" not in sheet.text


def test_they_are_public(folder: Path) -> None:
    assert {"openapi", "docs", "docs_style"} <= routes.PUBLIC_ROUTES
