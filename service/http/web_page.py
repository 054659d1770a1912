"""The web page at `/`: its files, read once, with type and ETag. Knows no model."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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


@dataclass(frozen=True)
class PageFile:
    """A file's bytes, media type, and ETag of the content."""

    body: bytes
    media_type: str
    etag: str

    @property
    def headers(self) -> dict[str, str]:
        """Browsers check each time whether their copy is current, so that no page mixes two versions."""
        return {"etag": self.etag, "cache-control": "no-cache"}


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


def is_current(file: PageFile, request: Request) -> bool:
    """Whether the request has the file's current ETag, so that its sender has the file."""
    named = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return file.etag in named or named == ["*"]


async def page(request: Request) -> Response:
    """GET / and GET /web/{name}."""
    file = page_files().get(request.path_params.get("name", INDEX))
    if file is None:
        raise HTTPException(404)
    if is_current(file, request):
        return Response(status_code=304, headers=file.headers)
    return Response(file.body, media_type=file.media_type, headers=file.headers)


ROUTES = [Route("/", page, name="page"), Route("/web/{name}", page, name="web")]
PUBLIC_ROUTES = frozenset({"page", "web"})  # by name: the page must load before it can ask for an API key
