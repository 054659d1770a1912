"""Outermost middleware: request IDs, access log, security headers, last-resort errors."""

import asyncio
import contextvars
import logging
import re
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext, suppress
from urllib.parse import quote

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InternalError, NotReady, Overloaded, RouteNotFound, WispError

log = logging.getLogger("wisp")
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")

POLICY = 1008  # a close code
SWITCHED = 101  # the status of a WebSocket that was accepted
SAFE_REQUEST_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)
# Only this server's files run or are drawn, and no text can become markup or a script.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE_HEADERS = [
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"microphone=(self), camera=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


def error_response(error: WispError) -> Response:
    """Any error in OpenAI's envelope."""
    return JSONResponse(error.envelope(), status_code=error.status, headers=dict(error.headers))


def _safe(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The security headers to add: browsers must respect the type, and pages use only this server."""
    own = {name.lower(): value for name, value in headers}
    is_page = own.get(b"content-type", b"").lower().startswith(b"text/html")
    return [(b"x-content-type-options", b"nosniff"), *(PAGE_HEADERS if is_page else [])]


class RequestLog:
    """ASGI middleware: a request ID in and out, a log line per request, and an envelope for uncaught errors."""

    def __init__(
        self,
        app: ASGIApp,
        on_end: Callable[[Scope, int, float], None] = lambda *_: None,
        wrap: Callable[[ASGIApp], ASGIApp] = lambda answer: answer,
    ) -> None:
        """`on_end`: called with each request's scope, status and seconds.

        `wrap`: adds to this middleware's own responses what `app` adds to the others, the CORS headers.
        """
        self.app, self.on_end, self.wrap = app, on_end, wrap

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        identity = sent if SAFE_REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"
        request_id.set(identity)
        started = time.monotonic()
        status = 0
        # A WebSocket under a server that cannot answer its handshake with more than 403.
        is_mute = scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {})

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                own = message["headers"]
                message["headers"] = [*own, (b"x-request-id", identity.encode("ascii")), *_safe(own)]
                if is_mute:
                    message = {"type": "websocket.close", "code": POLICY}
            elif message["type"] == "websocket.http.response.body" and is_mute:
                return
            elif message["type"] == "websocket.accept":
                status = SWITCHED
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode("ascii"))]
            elif message["type"] == "websocket.close" and not status:  # routing found nothing
                missing = RouteNotFound(f"{scope['path']} does not exist.")
                await error_response(missing)(scope, receive, send_with_id)
                return
            with suppress(OSError) if scope["type"] == "websocket" and status != SWITCHED else nullcontext():
                await send(message)  # the client may be gone before its refusal

        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # The server stops, and this request has no job yet that could be cancelled, or its client isn't reading.
            if not status:
                await self.wrap(error_response(NotReady("The server is stopping.")))(scope, receive, send_with_id)
        except Exception as error:
            is_overload = Overloaded.is_meant_by(error)
            if is_overload:
                log.error("request failed: %s", error)
            else:
                log.exception("request failed")
            if status:  # the response has started and cannot be changed; the server closes the connection
                raise
            answer = error_response(Overloaded() if is_overload else InternalError())
            await self.wrap(answer)(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - started
            path = quote(scope["path"])  # a line break in it would start a forged log line
            fields = {
                "method": scope.get("method", "GET"),
                "path": path,
                "status": status,
                "seconds": round(seconds, 6),
            }
            log.info("%s %s %d %.3f s", *fields.values(), extra={"fields": fields})
            self.on_end(scope, status, seconds)
