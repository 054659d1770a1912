"""/openapi.json, made of the tables that the API itself is made of: the form's fields, the bodies of schemas.py."""

from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from service.http.form.table import FIELDS, RULES, Field, narrowed, object_schema
from service.http.openapi import schemas

TITLE = "Wisp"
ABOUT = (
    "OpenAI's audio API, served by Whisper on this machine. Its paths also answer without /v1, under /openai/v1 (Groq) "
    "and /openai/deployments/MODEL (Azure); whisper.cpp's are /inference and /health."
)

WILDCARDS = set("*?[")  # in an alias: other names are served too

Operation = dict[str, Any]
REFUSALS = {  # statuses that a request for words may be answered with, besides 200
    "400": "A field that cannot be honoured, or a file that cannot be read; param names it.",
    "404": "Another model was asked for.",
    "408": "The upload came too slowly.",
    "413": "The upload or the audio is over the limit.",
    "429": "The queue is full; Retry-After says when to come back.",
    "500": "The server failed; its log says why.",
    "503": "The model is not ready, the GPU failed, the transcription took too long, or the disk for uploads is full.",
}
UNAUTHORIZED = "No API key, or a wrong one, where the server has keys."


def _error(description: str) -> Operation:
    return {
        "description": description,
        "content": {"application/json": {"schema": schemas.reference("Error")}},
    }


def _answer(description: str, schema: str) -> Operation:
    return {
        "description": description,
        "content": {"application/json": {"schema": schemas.reference(schema)}},
    }


def _words(summary: str, table: tuple[Field, ...], *, allows_others: bool) -> Operation:
    form = {"type": "object", **object_schema(table, RULES, allows_others=allows_others)}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {
                "description": "The words, as response_format asks.",
                "headers": {
                    "Wisp-Warning": {"description": "Fields that were ignored.", "schema": schemas.STRING},
                },
                "content": schemas.transcript_content(),
            },
            **{status: _error(description) for status, description in REFUSALS.items()},
        },
    }


def operations(
    names: Sequence[str], languages: Sequence[str], *, allows_others: bool
) -> dict[str, dict[str, Operation]]:
    """Path → method → operation. `names`: what the served model is called; `languages`: those it knows, if known."""
    choices: dict[str, tuple[str, ...]] = {}
    if not any(WILDCARDS & set(name) for name in names):
        choices["model"] = tuple(names)
    if languages:
        choices |= {"language": tuple(languages), "languages": tuple(languages)}
    table = narrowed(FIELDS, choices)
    path_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/v1/audio/transcriptions": {"post": _words("Audio in, its words out.", table, allows_others=allows_others)},
        "/v1/audio/translations": {
            "post": _words("Audio in any language in, English words out.", table, allows_others=allows_others)
        },
        "/v1/models": {
            "get": {
                "summary": "The served model, by its name and its aliases.",
                "responses": {"200": _answer("The name, then the aliases.", "ModelList")},
            }
        },
        "/v1/models/{id}": {
            "get": {
                "summary": "The served model, by its name or an alias.",
                "parameters": [path_id],
                "responses": {"200": _answer("The model.", "Model"), "404": _error("No such model.")},
            }
        },
        "/healthz": {
            "get": {
                "summary": "Whether the process is of use, or could be.",
                "security": [],
                "responses": {"200": _answer("It is.", "Health"), "503": _error("Nothing but a restart helps.")},
            }
        },
        "/readyz": {
            "get": {
                "summary": "Whether the model has done a real inference.",
                "security": [],
                "responses": {"200": _answer("It has.", "Health"), "503": _error("Not yet, or not any more.")},
            }
        },
        "/metrics": {
            "get": {
                "summary": "What has been done and how fast, for Prometheus.",
                "responses": {
                    "200": {"description": "Metrics.", "content": {"text/plain": {"schema": schemas.STRING}}}
                },
            }
        },
    }


def document(
    names: Sequence[str],
    languages: Sequence[str],
    *,
    paths: Collection[str],
    has_keys: bool = False,
    allows_others: bool = False,
) -> dict[str, Any]:
    """The OpenAPI 3.1 description of a server: of its model's names and languages, and whether it asks for API keys.

    `paths`: those that it serves; of others nothing is said. `allows_others`: whether it takes unknown form fields.
    """
    described_paths = operations(names, languages, allows_others=allows_others)
    served = {path: methods for path, methods in described_paths.items() if path in paths}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": _version(), "description": ABOUT},
        "paths": served,
        "components": {"schemas": schemas.COMPONENTS},
    }
    if has_keys:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
        for methods in served.values():
            for operation in methods.values():
                if "security" not in operation:
                    operation["responses"]["401"] = _error(UNAUTHORIZED)
    return described


def _version() -> str:
    try:
        return version("wisp")
    except PackageNotFoundError:
        return "0"
