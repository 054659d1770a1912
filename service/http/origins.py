"""Decides which web pages may use the server, and which Host names it has: browsers send requests for any page.

A page of any site can make a browser post a form to http://localhost:8080, and after DNS rebinding the browser takes
the server for the page's own. The browser sends the page's origin (Origin) and the name it used (Host).
"""

import ipaddress
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ForeignOrigin, UnknownHost, WispError
from service.http.request_log import error_response

HEALTH_PATHS = frozenset({"/health", "/healthz", "/readyz"})  # asked by monitors under any name; they reveal little
SINGLE_LABEL = re.compile(
    r"[a-z0-9_-]+", re.ASCII
)  # a container's, for example: no public name, so no page's to rebind
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class OriginGuard:
    """ASGI middleware: 403 for a page of another origin, 421 for a name that isn't the server's.

    Admits programs' requests, which have no Origin, and those of the server's own pages.
    """

    def __init__(self, app: ASGIApp, *, origins: str, hosts: Sequence[str], check_host: bool) -> None:
        """`origins`: a regular expression of the allowed ones. `hosts`: the server's names, `*` matches any letters.

        `check_host`: whether to accept only those, localhost, addresses and names without a dot.
        """
        self.app, self.hosts, self.check_host = app, hosts, check_host
        self.origins = re.compile(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_checked = scope["type"] != "lifespan" and scope["path"] not in HEALTH_PATHS
        refusal = self._refusal(scope) if is_checked else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await error_response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> WispError | None:
        sent = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = sent.get(b"host", ""), sent.get(b"origin")
        if self.check_host and host and not self._is_own_name(host):
            return UnknownHost(_name(host))
        if origin is None or self._is_own_page(origin, host, sent.get(b"sec-fetch-site", "")):
            return None
        return None if origin and self.origins.fullmatch(origin) else ForeignOrigin(origin)

    def _is_own_name(self, host: str) -> bool:
        name = _name(host)
        is_local = SINGLE_LABEL.fullmatch(name) is not None or name.endswith(".localhost")
        return is_local or _is_address(name) or self._is_configured(name)

    def _is_own_page(self, origin: str, host: str, fetch_site: str) -> bool:
        if fetch_site == "same-origin":  # no page can set it, and behind a proxy Host may differ
            return True
        try:
            parts = urlsplit(origin)
            port = parts.port or DEFAULT_PORTS.get(parts.scheme)
            called = urlsplit(f"{parts.scheme}://{host}")
            own_port = called.port or DEFAULT_PORTS.get(parts.scheme)
        except ValueError:
            return False
        if not parts.hostname or parts.scheme not in DEFAULT_PORTS:
            return False
        return (parts.hostname, port) == (called.hostname, own_port) or self._is_configured(parts.hostname)

    def _is_configured(self, name: str) -> bool:
        return any(fnmatchcase(name, known.lower()) for known in self.hosts)


def _name(host: str) -> str:
    """A Host header's name without port and brackets; an unreadable one is returned unchanged."""
    try:
        return (urlsplit(f"//{host}").hostname or host).rstrip(".")
    except ValueError:
        return host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
