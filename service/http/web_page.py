"""The web page at `/`: its files, read once, with type and ETag. Knows no model."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parents[1] / "web"
INDEX = "index.html"
# Not the system's table of types, which may be incomplete: browsers reject modules of another type.
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageFile(NamedTuple):
    """A file's bytes, media type, and ETag of the content."""

    body: bytes
    media_type: str
    etag: str


@cache
def page_files() -> Mapping[str, PageFile]:
    """All files of the page by name. A request's path is only looked up here, never opened."""
    files = {}
    for path in sorted(FOLDER.iterdir()):
        body = path.read_bytes()
        # By content: files in a container image all have the same date.
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        files[path.name] = PageFile(body, MEDIA_TYPES[path.suffix], etag)
    return files


async def page(request: Request) -> Response:
    """GET / and GET /web/{name}."""
    file = page_files().get(request.path_params.get("name", INDEX))
    if file is None:
        raise HTTPException(404)
    # Browsers check each time whether their copy is current, so that no page mixes two versions.
    headers = {"etag": file.etag, "cache-control": "no-cache"}
    named = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in named or named == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


ROUTES = [Route("/", page, name="page"), Route("/web/{name}", page, name="web")]
PUBLIC_ROUTES = frozenset({"page", "web"})  # by name: the page must load before it can ask for an API key
