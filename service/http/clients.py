"""Identifies the sender of a request, by API key or, without keys, by address. Each gets a share of the places."""

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from service.transcription.admission import current_client

KEY_IN_SCOPE = "wisp.key"  # set when the request's key has been accepted
IPV6_PREFIX = 64  # one customer's IPv6 network: counting single addresses would be no limit


def client_of(scope: Scope) -> str:
    """A name for the sender, the same for all its requests."""
    if key := scope.get(KEY_IN_SCOPE):
        return f"key {key}"
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and not address.ipv4_mapped:
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return str(address)


class NamedClient:
    """ASGI middleware: sets `current_client` to the request's sender, for its handlers and its job."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            current_client.set(client_of(scope))
        await self.app(scope, receive, send)
