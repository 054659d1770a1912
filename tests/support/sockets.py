"""A connection to a server around an application, and what comes back over it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from service.http.server import Server


@contextmanager
def connection(app: Any) -> Iterator[socket.socket]:
    """A connection to a server around `app`; both end together."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app, (), grace_s=0.0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def everything(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    told = b""
    while data := client.recv(65536):
        told += data
    return told


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers before it reads."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
