"""/openapi.json, made from the API's own tables: the form fields and the bodies in schemas.py."""

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
REFUSALS = {  # statuses of a transcription request other than 200
    "400": "A field is not supported, or the file cannot be decoded; param names the field.",
    "403": "The API key is for other models.",
    "404": "There is no such model.",
    "408": "The upload was too slow.",
    "413": "The upload or the audio is over the limit.",
    "429": "The queue is full; Retry-After says when to retry.",
    "500": "A fault of the server; its log has the cause.",
    "503": "The model is not ready or cannot be loaded, the GPU failed, the transcription took too long, or the disk "
    "for uploads is full.",
}
UNAUTHORIZED = "No API key, or a wrong one."
OTHER_MODELS = "The API key is for other models."
NO_ADMIN = "The API key may not administer, or there are no keys."
PULL = {"type": "object", "properties": {"model": schemas.STRING}, "required": ["model"]}


def _error(description: str) -> Operation:
    return {"description": description, "content": {"application/json": {"schema": schemas.reference("Error")}}}


def _answer(description: str, schema: str) -> Operation:
    return {"description": description, "content": {"application/json": {"schema": schemas.reference(schema)}}}


def _words(summary: str, table: tuple[Field, ...], *, allows_others: bool) -> Operation:
    form = {"type": "object", **object_schema(table, RULES, allows_others=allows_others)}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {
                "description": "The transcript, in the requested response_format.",
                "headers": {"Wisp-Warning": {"description": "Fields that were ignored.", "schema": schemas.STRING}},
                "content": schemas.transcript_content(),
            },
            **{status: _error(description) for status, description in REFUSALS.items()},
        },
    }


def operations(
    names: Sequence[str], languages: Sequence[str], *, allows_others: bool
) -> dict[str, dict[str, Operation]]:
    """Path → method → operation. `names`: the default model's names; `languages`: those it knows, if known."""
    choices: dict[str, tuple[str, ...]] = {}
    if not any(WILDCARDS & set(name) for name in names):
        choices["model"] = tuple(names)
    if languages:
        choices |= {"language": tuple(languages), "languages": tuple(languages)}
    table = narrowed(FIELDS, choices)
    path_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/v1/audio/transcriptions": {"post": _words("Transcribe audio.", table, allows_others=allows_others)},
        "/v1/audio/translations": {
            "post": _words("Translate audio in any language into English text.", table, allows_others=allows_others)
        },
        "/v1/models": {
            "get": {
                "summary": "The models: the default under its name and aliases, then the others.",
                "responses": {"200": _answer("The models.", "ModelList")},
            },
            "post": {
                "summary": "Fetch a model from the hub. Needs the right to administer.",
                "requestBody": {"required": True, "content": {"application/json": {"schema": PULL}}},
                "responses": {
                    "200": {
                        "description": "Progress as server-sent events, the last with the model or an error.",
                        "content": {"text/event-stream": {"x-event-schema": schemas.reference("PullEvent")}},
                    },
                    "400": _error("No model is known by that name, or the body is malformed."),
                    "403": _error(NO_ADMIN),
                    "502": _error("The hub does not have it, or does not answer."),
                    "503": _error("It is being pulled already."),
                },
            },
        },
        "/v1/models/{id}": {
            "get": {
                "summary": "A model, by its name or an alias.",
                "parameters": [path_id],
                "responses": {
                    "200": _answer("The model.", "Model"),
                    "403": _error(OTHER_MODELS),
                    "404": _error("No such model."),
                    "503": _error("It is being pulled."),
                },
            },
            "delete": {
                "summary": "Unload a model until its next request, or remove one that was pulled. Needs the right to "
                "administer.",
                "parameters": [
                    path_id,
                    {"name": "remove", "in": "query", "schema": {"type": "string", "enum": ["true", "false"]}},
                ],
                "responses": {
                    "200": _answer("What was done.", "Unloaded"),
                    "400": _error("remove is neither true nor false."),
                    "403": _error(NO_ADMIN),
                    "404": _error("No such model."),
                    "409": _error("It is in use, or its files are not Wisp's to remove."),
                },
            },
        },
        "/api/ps": {
            "get": {
                "summary": "The models in memory, as Ollama lists them. Needs the right to administer.",
                "responses": {"200": _answer("The models.", "LoadedModels"), "403": _error(NO_ADMIN)},
            }
        },
        "/healthz": {
            "get": {
                "summary": "Liveness: whether the process works.",
                "security": [],
                "responses": {"200": _answer("It does.", "Health"), "503": _error("Only a restart helps.")},
            }
        },
        "/readyz": {
            "get": {
                "summary": "Readiness: whether the model can transcribe.",
                "security": [],
                "responses": {"200": _answer("It can.", "Health"), "503": _error("Not yet, or no longer.")},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Metrics for Prometheus.",
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
    """A server's OpenAPI 3.1 description: its model's names and languages, and whether it needs API keys.

    `paths`: the served ones; others are left out. `allows_others`: whether it accepts unknown form fields.
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
