"""GET /openapi.json and GET /docs: the API's description for programs and, as a page without scripts, for people."""

import asyncio
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from service.http.openapi import document as openapi

if TYPE_CHECKING:  # it takes a tenth of a second, and few ask for the page
    from jinja2 import Template

FOLDER = Path(__file__).parent


def _document(request: Request) -> dict[str, Any]:
    service = request.app.state.service
    settings = service.settings
    is_known = service.engine.transcriber is not None and not service.others_may_know()
    return openapi.document(
        service.default_names(),
        service.languages(service.catalogue.default) if is_known else (),
        paths={route.path.replace(":path}", "}") for route in request.app.routes},
        has_keys=bool(settings.api_keys or settings.api_keys_file),
        allows_others=settings.unknown_fields != "refuse",
    )


@functools.cache
def _page() -> "Template":
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["json"] = functools.partial(json.dumps, ensure_ascii=False)
    return environment.get_template("docs.html")


async def description(request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(await asyncio.to_thread(_document, request))


async def docs(request: Request) -> Response:
    """GET /docs."""
    return HTMLResponse(_page().render(await asyncio.to_thread(_document, request)))


async def style(request: Request) -> Response:
    """GET /docs.css."""
    return Response((FOLDER / "docs.css").read_text("utf-8"), media_type="text/css")


ROUTES = [
    Route("/openapi.json", description, name="openapi"),
    Route("/docs", docs, name="docs"),
    Route("/docs.css", style, name="docs_style"),
]
PUBLIC_ROUTES = frozenset({"openapi", "docs", "docs_style"})  # by name
