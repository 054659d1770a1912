"""Checks response bodies against the schemas in /openapi.json."""

import json
from typing import Any

from jsonschema import Draft202012Validator

from service.http.formats import MEDIA_TYPES
from service.http.openapi.schemas import COMPONENTS, JSON_BODIES
from tests.support.serving import events


def assert_is(name: str, body: Any) -> None:
    """`body` matches the component `name`."""
    components = {"components": {"schemas": COMPONENTS}}
    schema = {"$ref": f"#/components/schemas/{name}", **components}
    Draft202012Validator(schema).validate(body)


def assert_answer(response: Any, response_format: str = "json", *, stream: bool = False) -> Any:
    """Check a complete response of this format; returns its parsed body, or its text, or its events."""
    assert response.status_code == 200, response.text
    if stream:
        assert response.headers["content-type"].startswith("text/event-stream")
        heard = events(response.text)
        for event in heard:
            assert_is("Event", event)
        assert [event["type"] for event in heard].count("transcript.text.done") == 1
        assert heard[-1]["type"] == "transcript.text.done"
        return heard
    assert response.headers["content-type"] == MEDIA_TYPES[response_format]
    if response_format not in JSON_BODIES:
        return response.text
    body = json.loads(response.text)
    assert_is(JSON_BODIES[response_format], body)
    return body
