"""The routes of live speech: the WebSocket /v1/realtime, and two that make client secrets for it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.errors import InvalidValue, UpgradeRequired
from service.http.api_keys import RIGHTS_IN_SCOPE, rights_of
from service.http.clients import KEY_IN_SCOPE
from service.http.realtime.configuration import Configuration
from service.http.realtime.events import new_id
from service.http.realtime.secrets import SECRET_IN_SCOPE, Secret
from service.http.realtime.session import Session
from service.http.service import Choice, Service
from service.http.small_body import json_object

SUBPROTOCOL = "realtime"
MAX_BODY_BYTES = 64 * 1024
SECONDS = (10, 7200)  # validity of a client secret
DEFAULT_SECONDS = 600


async def realtime(websocket: WebSocket) -> None:
    """GET /v1/realtime: one live session. Raises WispError before it accepts the connection."""
    service: Service = websocket.app.state.service
    secret: Secret | None = websocket.scope.get(SECRET_IN_SCOPE)
    with service.live.reserve() as place:
        offered = websocket.scope["subprotocols"]
        try:
            await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        except WebSocketDisconnect:
            return
        configuration = secret.configuration if secret is not None else Configuration()
        if not configuration.model:
            configuration = replace(configuration, model=_model(websocket))
        rights = rights_of(websocket.scope, service.settings)
        await Session(websocket, service, rights, place, configuration).run()


def _model(websocket: WebSocket) -> str:
    """The model that the address names; empty if there is none."""
    named = (websocket.query_params.get(name, "") for name in ("model", "deployment"))
    return str(websocket.path_params.get("deployment") or next(filter(None, named), ""))


async def plain(request: Request) -> Response:
    """GET /v1/realtime without a WebSocket handshake."""
    raise UpgradeRequired


async def client_secrets(request: Request) -> Response:
    """POST /v1/realtime/client_secrets: makes a key for live sessions that a page may have."""
    body = await json_object(request, MAX_BODY_BYTES, '{"session": {…}}')
    session = body.get("session")
    value, expires_at, configuration = _create(
        request, {} if session is None else session, body.get("expires_after"), "expires_after"
    )
    service: Service = request.app.state.service
    shown = configuration.shown(service.catalogue.default.name)
    described = {"id": new_id("sess"), "expires_at": expires_at, **shown}
    return JSONResponse({"value": value, "expires_at": expires_at, "session": described})


async def transcription_sessions(request: Request) -> Response:
    """POST /v1/realtime/transcription_sessions: the same, in the beta's form."""
    body = await json_object(request, MAX_BODY_BYTES, '{"input_audio_format": "pcm16"}')
    asked = body.get("client_secret")
    expires = asked.get("expires_at") if isinstance(asked, dict) else asked
    value, expires_at, configuration = _create(request, body, expires, "client_secret.expires_at")
    service: Service = request.app.state.service
    shown = configuration.shown_flat(service.catalogue.default.name)
    secret = {"value": value, "expires_at": expires_at}
    return JSONResponse({"id": new_id("sess"), **shown, "client_secret": secret})


def _create(request: Request, session: Any, expires: Any, param: str) -> tuple[str, int, Configuration]:
    """A new secret, the Unix time at which it expires, its sessions' configuration. Raises WispError."""
    service: Service = request.app.state.service
    configuration = Configuration().updated(session)
    choice = Choice(service, rights_of(request.scope, service.settings))
    if configuration.model:
        choice.take(configuration.model)
    choice.check(configuration.options)
    value, expires_at = service.secrets.create(
        _seconds(expires, param),
        key=request.scope.get(KEY_IN_SCOPE),
        rights=request.scope.get(RIGHTS_IN_SCOPE),
        configuration=configuration,
    )
    return value, expires_at, configuration


def _seconds(expires: Any, param: str) -> int:
    """N of `{"anchor": "created_at", "seconds": N}`. Raises InvalidValue."""
    if expires is None:
        return DEFAULT_SECONDS
    seconds = expires.get("seconds", DEFAULT_SECONDS) if isinstance(expires, Mapping) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not SECONDS[0] <= seconds <= SECONDS[1]:
        raise InvalidValue(
            f"{param}.seconds must be a whole number from {SECONDS[0]} to {SECONDS[1]}.", param=f"{param}.seconds"
        )
    return seconds


def routes(prefix: str) -> list[BaseRoute]:
    """All routes under a prefix. OpenAPI can't describe a WebSocket's events, so docs/realtime.md does."""
    made = f"{prefix}/realtime"
    return [
        WebSocketRoute(made, realtime, name="realtime"),
        Route(made, plain, methods=["GET"], include_in_schema=False),
        Route(f"{made}/client_secrets", client_secrets, methods=["POST"], include_in_schema=False),
        Route(f"{made}/transcription_sessions", transcription_sessions, methods=["POST"], include_in_schema=False),
    ]
