"""A Wyoming port around an engine, in the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from wyoming.client import AsyncTcpClient

from service.http.app import create_app, listen
from service.http.service import Service
from service.transcription.engine import Engine
from service.wyoming.server import WyomingServer


@dataclass
class Port:
    """An open one: its number, what it serves, its connections' tasks."""

    number: int
    service: Service
    tasks: "set[asyncio.Task[Any]]"
    server: WyomingServer

    def client(self) -> AsyncTcpClient:
        return AsyncTcpClient("127.0.0.1", self.number, connect_timeout=10, read_timeout=60)


Opened = Callable[[Engine], AbstractAsyncContextManager[Port]]


@asynccontextmanager
async def _opened(engine: Engine) -> AsyncIterator[Port]:
    service: Service = create_app(engine).state.service
    server, tasks = WyomingServer(service, listen("127.0.0.1", 0)), set[asyncio.Task[Any]]()
    await server.open(tasks)
    try:
        yield Port(server.port, service, tasks, server)
    finally:
        await server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@pytest.fixture
def opened() -> Opened:
    """Opens a port around an engine."""
    return _opened
