"""The HTTP routes: validate early, transcribe without blocking the event loop, respond in OpenAI's formats."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute

from service import errors
from service.http import administration, formats, web_page
from service.http.api_keys import rights_of
from service.http.form.bodies import reader_for
from service.http.form.fields import Fields
from service.http.form.multipart import MAX_PARTS, BodyReader
from service.http.jobs import Job
from service.http.openapi import routes as api_pages
from service.http.realtime import route as realtime
from service.http.request_log import error_response
from service.http.service import Choice, Service
from service.http.sse import MEDIA_TYPE, EventStream
from service.http.uploads import UploadPlace
from service.transcription.reading import Upload
from service.transcription.transcriber import Options

log = logging.getLogger("wisp")

FOREIGN_PREFIXES = ("/openai/v1", "/openai/deployments/{deployment}")  # Groq's and Azure's
QUERY_OF_AZURE = ("api-version",)


async def transcriptions(request: Request) -> Response:
    """POST /v1/audio/transcriptions: transcribe one file as the form says."""
    return await _answer(request, "transcribe")


async def translations(request: Request) -> Response:
    """POST /v1/audio/translations: translate one file into English text; multilingual models only."""
    return await _answer(request, "translate")


async def _answer(request: Request, task: str) -> Response:
    service: Service = request.app.state.service
    choice = Choice(service, rights_of(request.scope, service.settings))
    choice.check(Options(task=task))
    fields = _fields(request, service, task, choice)
    # A request rejected by its headers takes no place away from other uploads.
    reader = _body_reader(request, fields, service.settings.max_upload_bytes)
    with service.uploads.reserve(service.admission()) as place:
        file = await _read_form(request, reader, place)
        leaving = asyncio.create_task(_client_leaves(request))
        try:
            options = fields.finish()
            upload = Upload(file, service.settings.max_audio_s)
            async with choice.transcriber(options) as transcriber:
                job = Job(transcriber, upload, options, leaving, service.under_way)
            place.keep_until(job.run.future)
        except BaseException:
            leaving.cancel()
            file.close()
            raise
    headers = {}
    if fields.warning:
        log.info("%s", fields.log_line)
        headers["wisp-warning"] = fields.warning
    if fields.stream:
        headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
        stream = EventStream(fields.response_format, fields.granularities, logprobs=options.logprobs)
        return StreamingResponse(await job.frames(stream), media_type=MEDIA_TYPE, headers=headers)
    result = await job.result()
    body = formats.render(result, fields.response_format, fields.granularities, logprobs=options.logprobs)
    return Response(body, media_type=formats.MEDIA_TYPES[fields.response_format], headers=headers)


def _fields(request: Request, service: Service, task: str, choice: Choice) -> Fields:
    """A request's fields, with those of its URL as defaults: the query's, and Azure's deployment.

    Raises MalformedForm for a query of more than MAX_PARTS fields, before parsing it.
    """
    refuses_unknown = service.settings.unknown_fields == "refuse"
    address = Fields(choice.take, task=task, check=choice.check, refuses_unknown=refuses_unknown)
    deployment = request.path_params.get("deployment")
    if deployment is not None:
        address("model", deployment)
    try:
        query = parse_qsl(
            request.scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARTS
        )
    except ValueError:
        raise errors.MalformedForm(f"The query has more than {MAX_PARTS} fields.") from None
    for name, text in query:
        if name not in QUERY_OF_AZURE and not (name == "model" and deployment is not None):
            address(name, text)
    address.fold()
    return Fields(choice.take, task=task, check=choice.check, refuses_unknown=refuses_unknown, defaults=address)


def _body_reader(request: Request, fields: Fields, max_bytes: int) -> BodyReader:
    content_type = request.headers.get("content-type", "")
    reader = reader_for(content_type, max_file_bytes=max_bytes, on_field=fields, is_text=fields.knows)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > reader.max_body_bytes:
        raise errors.UploadTooLarge(int(announced), max_bytes, announced=True)
    return reader


async def _read_form(request: Request, reader: BodyReader, place: UploadPlace) -> BinaryIO:
    try:
        async with place.reading():
            file = await reader.read(place.counted(request.stream()))
    except ClientDisconnect:
        raise errors.ClientGone from None
    except errors.UploadTooSlow:
        reader.close()  # it may be fully read by then
        raise
    if file is None:
        raise errors.MissingField("file")
    return file


async def _client_leaves(request: Request) -> None:
    """Ends when the client of a fully read request closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def models(request: Request) -> Response:
    """GET /v1/models: the default by its name, then by each alias without wildcards, then the other models.

    POST pulls one.
    """
    if request.method == "POST":
        return await administration.pull(request)
    service: Service = request.app.state.service
    rights = rights_of(request.scope, service.settings)
    return JSONResponse({"object": "list", "data": await asyncio.to_thread(service.listed, rights)})


async def model(request: Request) -> Response:
    """GET /v1/models/{id}, by a model's name or an alias. DELETE unloads or removes it."""
    if request.method == "DELETE":
        return await administration.unload(request)
    service: Service = request.app.state.service
    name = request.path_params["id"]
    entry, by_own_name = service.find(name, rights_of(request.scope, service.settings))
    described = await asyncio.to_thread(service.model_object, entry, name)
    return JSONResponse(described if by_own_name else described | {"alias_of": entry.name})


async def healthz(request: Request) -> Response:
    """GET /healthz: 200, or 503 once only a restart helps."""
    service: Service = request.app.state.service
    service.liveness()
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: 200 while the model can transcribe, else 503."""
    service: Service = request.app.state.service
    await service.readiness()
    return JSONResponse({"status": "ready", "model": service.catalogue.default.name})


def _api(prefix: str) -> list[BaseRoute]:
    """The API's routes under a prefix; only OpenAI's own are in the schema."""
    is_described = prefix == "/v1"
    return [
        Route(f"{prefix}/audio/transcriptions", transcriptions, methods=["POST"], include_in_schema=is_described),
        Route(f"{prefix}/audio/translations", translations, methods=["POST"], include_in_schema=is_described),
        *realtime.routes(prefix),
        Route(f"{prefix}/models", models, methods=["GET", "POST"], include_in_schema=is_described),
        Route(f"{prefix}/models/{{id:path}}", model, methods=["GET", "DELETE"], include_in_schema=is_described),
    ]


ROUTES: list[BaseRoute] = [
    *(route for prefix in ("/v1", "", *FOREIGN_PREFIXES) for route in _api(prefix)),
    Route("/inference", transcriptions, methods=["POST"], include_in_schema=False),  # whisper.cpp's
    WebSocketRoute("/openai/realtime", realtime.realtime, name="realtime"),  # Azure's
    Route("/api/ps", administration.loaded, name="loaded"),
    Route("/health", healthz, include_in_schema=False),
    Route("/healthz", healthz),
    Route("/readyz", readyz),
    *api_pages.ROUTES,
    *web_page.ROUTES,
]
# Names of the routes that need no API key; all other routes and paths do.
PUBLIC_ROUTES = frozenset({"healthz", "readyz"}) | api_pages.PUBLIC_ROUTES | web_page.PUBLIC_ROUTES


async def on_wisp_error(request: Request, error: Exception) -> Response:
    """A WispError raised by a route."""
    assert isinstance(error, errors.WispError)
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own errors, in the envelope: unknown path, wrong method."""
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            response = error_response(errors.RouteNotFound(f"{request.url.path} does not exist."))
        case 405:
            response = error_response(errors.MethodNotAllowed(f"{request.url.path} does not support {request.method}."))
        case _:
            refusal = errors.RequestError(f"{error.detail}.")
            refusal.status = error.status_code
            response = error_response(refusal)
    response.headers.update(error.headers or {})
    return response


EXCEPTION_HANDLERS: dict[Any, Callable[[Request, Exception], Coroutine[Any, Any, Response]]] = {
    errors.WispError: on_wisp_error,
    HTTPException: on_http_exception,
}
