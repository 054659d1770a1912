"""Who sends a request: its API key, or its address where there are no keys. Places are shared out by that."""

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from service.transcription.admission import current_client

KEY_IN_SCOPE = "wisp.key"  # set by what has accepted the request's key
IPV6_PREFIX = 64  # what one customer has of IPv6: an address each would be no limit


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
    """ASGI middleware: `current_client` is the sender of the request, for what handles it and for its job."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            current_client.set(client_of(scope))
        await self.app(scope, receive, send)
