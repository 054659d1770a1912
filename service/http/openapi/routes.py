"""GET /openapi.json and GET /docs: the API's description for programs and for people."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from service.http.openapi import document as openapi
from service.http.openapi import page as docs_page


def _document(request: Request) -> dict[str, Any]:
    service = request.app.state.service
    settings = service.settings
    paths = {route.path.replace(":path}", "}") for route in request.app.routes}
    has_keys = bool(settings.api_keys or settings.api_keys_file)
    return openapi.document(
        service.default_names(),
        () if service.others_may_know() else service.known_languages(),
        paths=paths,
        has_keys=has_keys,
        allows_others=settings.unknown_fields != "refuse",
    )


async def description(request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(await asyncio.to_thread(_document, request))


async def docs(request: Request) -> Response:
    """GET /docs."""
    return HTMLResponse(docs_page.page(await asyncio.to_thread(_document, request)))


async def style(request: Request) -> Response:
    """GET /docs.css."""
    return Response(docs_page.STYLE, media_type="text/css")


ROUTES = [
    Route("/openapi.json", description, name="openapi"),
    Route("/docs", docs, name="docs"),
    Route("/docs.css", style, name="docs_style"),
]
PUBLIC_ROUTES = frozenset({"openapi", "docs", "docs_style"})  # by name
