"""All wiring: settings → engine → ASGI application → server."""

import contextlib
import errno
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from service.errors import StartError
from service.guest.code_cache import user_cache_folder
from service.settings import Settings
from service.transcription.engine import GUEST_WASM, Engine

if TYPE_CHECKING:  # imported where used: `wisp transcribe` serves nothing
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp

    from service.http.api_keys import ApiKeys
    from service.http.metrics import Metrics
    from service.http.realtime.secrets import ClientSecrets
    from service.http.server import Door
    from service.http.service import Service
    from service.http.tracing import Tracing

__all__ = ["GUEST_WASM", "Engine", "create_app", "serve"]

log = logging.getLogger("wisp")

CLOSE_S = 4.0  # how long a stopped server waits for computations: a guest ends between two computes
LAST_PORT = 65_535
INTERRUPTED = 130  # a shell's exit code after Ctrl-C
METRICS_ROUTE = "metrics"


def create_app(
    engine: Engine, tracing: "Tracing | None" = None, keys: "ApiKeys | None" = None, *, check_host: bool = False
) -> "Starlette":
    """The ASGI application around one engine; its lifespan starts and closes the engine and `tracing`.

    `keys`: the accepted keys, if already read from the settings. `check_host`: whether to reject foreign Host headers.
    Raises StartError.
    """
    import asyncio

    from starlette.applications import Starlette

    from service.http import routes
    from service.http.api_keys import read_api_keys
    from service.http.form.multipart import find_spool_folder
    from service.http.health import Health
    from service.http.metrics import Metrics
    from service.http.realtime.places import LiveSessions
    from service.http.realtime.secrets import ClientSecrets
    from service.http.service import Service
    from service.http.uploads import Uploads

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        app.state.health.stop()
        # A daemon, so that a long computation delays neither this nor the process's end.
        closing = threading.Thread(target=engine.close, name="wisp-close", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_S)
        if tracing is not None:
            sending = threading.Thread(target=tracing.close, name="wisp-traces", daemon=True)
            sending.start()
            await asyncio.to_thread(sending.join, CLOSE_S)

    find_spool_folder()
    uploads = Uploads(engine.settings.n_places(), spool_bytes=engine.settings.spool_bytes)
    engine.served.catalogue.check_settings()
    metrics = Metrics(engine, uploads.n_under_way)
    live = LiveSessions(engine.settings.live_sessions, metrics)
    metrics.watch_live(live.n_open)
    secrets = ClientSecrets(engine.settings.live_secrets)
    engine.shared.observers.append(metrics.run_ended)
    engine.shared.model_observers.append(metrics.model_moved)
    if tracing is not None:
        engine.shared.observers.append(tracing.run_ended)
    table: list[BaseRoute] = [*routes.ROUTES]
    if engine.settings.metrics != "off":
        table.append(_metrics_route(metrics))
    app = Starlette(
        routes=table,
        exception_handlers=routes.EXCEPTION_HANDLERS,
        middleware=_middleware(
            engine.settings, keys or read_api_keys(engine.settings), secrets, table, metrics, tracing, check_host
        ),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    health = Health(engine, fresh_s=engine.settings.probe_after_s, limit_s=engine.settings.probe_limit_s)
    app.state.health = health
    app.state.service = Service(engine, health.readiness, health.liveness, uploads, live, secrets)
    return app


def _metrics_route(metrics: "Metrics") -> "BaseRoute":
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from service.http.metrics import CONTENT_TYPE

    async def exposition(request: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    return Route("/metrics", exposition, name=METRICS_ROUTE)


def _middleware(
    settings: Settings,
    keys: "ApiKeys",
    secrets: "ClientSecrets",
    table: "Sequence[BaseRoute]",
    metrics: "Metrics",
    tracing: "Tracing | None",
    check_host: bool,
) -> "list[Middleware]":
    """The middleware before every route, outermost first."""
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware

    from service.http import routes
    from service.http.api_keys import KeyGuard
    from service.http.clients import NamedClient
    from service.http.metrics import NO_ROUTE
    from service.http.origins import OriginGuard
    from service.http.request_log import RequestLog
    from service.http.route_table import PlainPath, route_of
    from service.http.upload_pace import UploadPace

    def on_end(scope: Any, status: int, seconds: float) -> None:
        metrics.request_ended(getattr(route_of(scope, table), "path", NO_ROUTE), status, seconds)

    def on_upload(seconds: float) -> None:
        metrics.upload_ended(seconds)
        if tracing is not None:
            tracing.upload_ended(seconds)

    origins, pattern = settings.cors_origin_list(), settings.cors_origin_pattern()

    def cors(app: "ASGIApp") -> "ASGIApp":
        if not origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=["*"] if "*" in origins else (),
            allow_origin_regex=pattern,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["x-request-id", "retry-after", "wisp-warning"],
        )

    stack = [Middleware(RequestLog, on_end=on_end, wrap=cors), Middleware(PlainPath)]
    if tracing is not None:
        stack.append(Middleware(tracing.middleware, routes=table))
    stack.append(Middleware(cors))  # before the keys: a browser's preflight has none
    stack.append(
        Middleware(
            OriginGuard, origins=settings.cors_origin_pattern(), hosts=settings.host_list(), check_host=check_host
        )
    )
    public = routes.PUBLIC_ROUTES | ({METRICS_ROUTE} if settings.metrics == "public" else set())
    stack.append(Middleware(KeyGuard, keys=keys, routes=table, public=public, secrets=secrets))
    stack.append(Middleware(NamedClient))
    stack.append(
        Middleware(
            UploadPace,
            floor_s=settings.upload_floor_s,
            bytes_per_s=settings.upload_bytes_per_s,
            idle_s=settings.upload_idle_s,
            on_end=on_upload,
        )
    )
    return stack


def serve(settings: Settings, doors: "Sequence[Callable[[Service], Door]]" = ()) -> None:
    """Serve until stopped. Raises StartError, before listening, for bad keys, address, model or port.

    `doors`: make other ports, which are open meanwhile.
    """
    from service.http.api_keys import is_local, read_api_keys, refuse_to_expose
    from service.http.connections import connections_within, raise_file_limit
    from service.http.logs import dress
    from service.http.server import Server
    from service.http.tracing import open_tracing
    from service.transcription.memory import freeze, keep_little

    for handler in logging.getLogger().handlers:
        dress(handler, settings.log_format)
    keep_little()
    n_files = raise_file_limit()
    keys = read_api_keys(settings)
    refuse_to_expose(settings, keys)
    tracing = open_tracing() if settings.tracing == "otlp" else None
    engine = Engine(settings, cache_folder=user_cache_folder())
    engine.read()
    engine.proven.add_done_callback(lambda _: freeze())
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, settings.logging_level()))  # ours say more
    app = create_app(engine, tracing, keys, check_host=is_local(settings))
    server = Server(
        app,
        app.state.service.under_way,
        grace_s=settings.grace_s,
        on_stop=app.state.health.stop,
        end_sessions=app.state.service.live.stop,
        doors=[door(app.state.service) for door in doors],
        message_bytes=settings.live_message_bytes(),
        most_connections=connections_within(n_files, settings.n_places(), settings.max_connections),
    )
    with listen(settings.host, settings.port) as listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        log.info("listening on http://%s:%d (loading the model)", host, listener.getsockname()[1])
        try:
            server.run(sockets=[listener])
        finally:
            if not engine.is_closed:
                log.warning("stopped while a computation was still running")
                logging.shutdown()
                os._exit(INTERRUPTED)  # a normal exit would wait for it


def listen(host: str, port: int, *, setting: str = "PORT") -> socket.socket:
    """A socket that accepts connections. `setting`: the port's, without WISP_. Raises StartError."""
    from service.http.server import BACKLOG

    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
        )
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        other = port + 1 if port < LAST_PORT else port - 1
        example = f" (WISP_{setting}={other} make run)" if error.errno == errno.EADDRINUSE else ""
        sentence = (
            f"Cannot listen on {host} port {port}: {reason}; choose others with --host and --{setting.lower()} "
            f"or WISP_HOST and WISP_{setting}{example}."
        )
        raise StartError(sentence) from None
