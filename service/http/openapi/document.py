"""/openapi.json, made from the API's own tables: the form fields and the bodies in schemas.py."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from service.http.form.table import FIELDS, RULES, Field, object_schema
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
NO_REFUSALS: Mapping[str, str] = {}
NO_ADMIN = "The API key may not administer, or there are no keys."
PULL = {"type": "object", "properties": {"model": schemas.STRING}, "required": ["model"]}


def _answer(description: str, schema: str = "Error") -> Operation:
    """A response with one of schemas.COMPONENTS."""
    return {"description": description, "content": {"application/json": {"schema": schemas.reference(schema)}}}


def _operation(summary: str, answer: Operation, refusals: Mapping[str, str] = NO_REFUSALS, **more: Any) -> Operation:
    """`answer`: the response with status 200; `refusals`: status → description of the others."""
    responses = {"200": answer} | {status: _answer(description) for status, description in refusals.items()}
    return {"summary": summary, **more, "responses": responses}


def _words(summary: str, table: tuple[Field, ...], *, allows_others: bool) -> Operation:
    form = {"type": "object", **object_schema(table, RULES, allows_others=allows_others)}
    answer = {
        "description": "The transcript, in the requested response_format.",
        "headers": {"Wisp-Warning": {"description": "Fields that were ignored.", "schema": schemas.STRING}},
        "content": schemas.transcript_content(),
    }
    body = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    return _operation(summary, answer, REFUSALS, requestBody=body)


def operations(
    names: Sequence[str], languages: Sequence[str], *, allows_others: bool
) -> dict[str, dict[str, Operation]]:
    """Path → method → operation. `names`: the default model's names; `languages`: those it knows, if known."""
    choices: dict[str, tuple[str, ...]] = {}
    if not any(WILDCARDS & set(name) for name in names):
        choices["model"] = tuple(names)
    if languages:
        choices |= {"language": tuple(languages), "languages": tuple(languages)}
    table = tuple(replace(field, choices=choices.get(field.name, field.choices)) for field in FIELDS)
    translate = "Translate audio in any language into English text."
    path_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    removes = {"name": "remove", "in": "query", "schema": {"type": "string", "enum": ["true", "false"]}}
    progress = {
        "description": "Progress as server-sent events, the last with the model or an error.",
        "content": {"text/event-stream": {"x-event-schema": schemas.reference("PullEvent")}},
    }
    metrics = {"description": "Metrics.", "content": {"text/plain": {"schema": schemas.STRING}}}
    return {
        "/v1/audio/transcriptions": {"post": _words("Transcribe audio.", table, allows_others=allows_others)},
        "/v1/audio/translations": {"post": _words(translate, table, allows_others=allows_others)},
        "/v1/models": {
            "get": _operation(
                "The models: the default under its name and aliases, then the others.",
                _answer("The models.", "ModelList"),
            ),
            "post": _operation(
                "Fetch a model from the hub. Needs the right to administer.",
                progress,
                {
                    "400": "No model is known by that name, or the body is malformed.",
                    "403": NO_ADMIN,
                    "502": "The hub does not have it, or does not answer.",
                    "503": "It is being pulled already.",
                },
                requestBody={"required": True, "content": {"application/json": {"schema": PULL}}},
            ),
        },
        "/v1/models/{id}": {
            "get": _operation(
                "A model, by its name or an alias.",
                _answer("The model.", "Model"),
                {"403": OTHER_MODELS, "404": "No such model.", "503": "It is being pulled."},
                parameters=[path_id],
            ),
            "delete": _operation(
                "Unload a model until its next request, or remove one that was pulled. Needs the right to administer.",
                _answer("What was done.", "Unloaded"),
                {
                    "400": "remove is neither true nor false.",
                    "403": NO_ADMIN,
                    "404": "No such model.",
                    "409": "It is in use, or its files are not Wisp's to remove.",
                },
                parameters=[path_id, removes],
            ),
        },
        "/api/ps": {
            "get": _operation(
                "The models in memory, as Ollama lists them. Needs the right to administer.",
                _answer("The models.", "LoadedModels"),
                {"403": NO_ADMIN},
            )
        },
        "/healthz": {
            "get": _operation(
                "Liveness: whether the process works.",
                _answer("It does.", "Health"),
                {"503": "Only a restart helps."},
                security=[],
            )
        },
        "/readyz": {
            "get": _operation(
                "Readiness: whether the model can transcribe.",
                _answer("It can.", "Health"),
                {"503": "Not yet, or no longer."},
                security=[],
            )
        },
        "/metrics": {"get": _operation("Metrics for Prometheus.", metrics)},
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
        "info": {"title": TITLE, "version": version("wisp"), "description": ABOUT},
        "paths": served,
        "components": {"schemas": schemas.COMPONENTS},
    }
    if has_keys:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
        for methods in served.values():
            for operation in methods.values():
                if "security" not in operation:
                    operation["responses"]["401"] = _answer(UNAUTHORIZED)
    return described
