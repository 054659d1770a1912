"""Finds a request's route before routing does: for the key check, and for metrics labels."""

import re
from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send


def plain_path(path: str) -> str:
    """`//v1/models/` → `/v1/models`: some clients join a base address and a path with double slashes, or end in one.

    A target in absolute form, as clients of proxies send it, loses its scheme and host (RFC 9112, 3.2.2).
    """
    path = re.sub("^https?://[^/]*", "", path)
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


class PlainPath:
    """ASGI middleware: gives the plain path to everything behind it, the key guard and the routes alike."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "path" in scope and plain_path(scope["path"]) != scope["path"]:
            scope = {**scope, "path": plain_path(scope["path"])}
        await self.app(scope, receive, send)


def route_of(scope: Scope, routes: Sequence[BaseRoute]) -> BaseRoute | None:
    """The first route that matches a request, else the first that matches its path, else None: as in routing."""
    scope = {**scope, "path": plain_path(scope["path"])}
    matches = [(route.matches(scope)[0], route) for route in routes]
    for wanted in (Match.FULL, Match.PARTIAL):
        for match, route in matches:
            if match == wanted:
                return route
    return None
