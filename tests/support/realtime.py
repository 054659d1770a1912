"""Helpers for tests of live sessions: a server in this process, an event client, an engine with scripted words."""

import asyncio
import base64
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from service.errors import ClientGone, DeviceLost, NothingToCommit
from service.http.app import create_app
from service.http.server import Server
from service.transcription.chunking import Chunking
from service.transcription.engine import Engine
from service.transcription.listener import Border, Started, Stopped
from service.transcription.types import Options, Token
from service.transcription.utterance import Heard, Words

Event = dict[str, Any]

RATE = 24_000
PATIENCE_S = 10.0
FAIL, HANG = "fail", "hang"  # prompts with which a fake utterance's result does so
HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def pcm(seconds: float, level: int = 1000) -> bytes:
    """16-bit PCM at 24 kHz: a constant, which is speech to the fake engine unless it is 0."""
    return np.full(round(seconds * RATE), level, "<i2").tobytes()


def append(data: bytes) -> Event:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}


def message(data: bytes, opcode: int = 1) -> bytes:
    """A frame of a client, masked with zeros."""
    size = len(data)
    extended = struct.pack("!H", size) if size < 65536 else struct.pack("!Q", size)
    marker = size if size < 126 else 126 if size < 65536 else 127
    return bytes([0x80 | opcode, 0x80 | marker]) + (b"" if size < 126 else extended) + bytes(4) + data


class Client:
    """A connection's events, in both directions."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, *events: Event | str | bytes) -> None:
        for event in events:
            self.connection.send(json.dumps(event) if isinstance(event, dict) else event)

    def update(self, **session: Any) -> Event:
        """Send a session.update → the answer's session, or the error."""
        self.send({"type": "session.update", "session": session})
        answer = self.recv()
        return dict(answer["session"] if "session" in answer else answer["error"])

    def configure(self, **heard: Any) -> Event:
        """Update what is in audio.input."""
        return self.update(audio={"input": heard})

    def recv(self, timeout: float = PATIENCE_S) -> Event:
        event: Event = json.loads(self.connection.recv(timeout))
        assert isinstance(event.pop("event_id"), str)
        return event

    def until(self, *kinds: str) -> list[Event]:
        """All events up to the first of one of these types."""
        events = [self.recv()]
        while not events[-1]["type"].endswith(kinds):
            events.append(self.recv())
        return events

    def closed(self) -> tuple[int, list[Event]]:
        """The close code, and the events before it."""
        from websockets.exceptions import ConnectionClosed

        events = []
        try:
            while True:
                events.append(self.recv())
        except ConnectionClosed as error:
            return (error.rcvd.code if error.rcvd is not None else 1006), events


class LiveServer:
    """A server on its own port, in a thread of its own."""

    def __init__(self, server: Server, app: Any, port: int) -> None:
        self.server, self.app, self.port = server, app, port
        self.url = f"http://127.0.0.1:{port}"

    @contextmanager
    def connect(self, path: str = "/v1/realtime", **options: Any) -> Iterator[Client]:
        """A client, before its first event."""
        options = {"compression": None, "max_size": None, "proxy": None} | options
        with connect(f"ws://127.0.0.1:{self.port}{path}", **options) as connection:
            yield Client(connection)

    @contextmanager
    def session(self, path: str = "/v1/realtime", **options: Any) -> Iterator[Client]:
        """A client that has read `session.created`."""
        with self.connect(path, **options) as client:
            assert client.recv()["type"] == "session.created"
            yield client

    def n_sessions(self) -> int:
        n: int = self.app.state.service.live.n_open()
        return n


@contextmanager
def live_server(engine: Engine, *, grace_s: float = 20.0) -> Iterator[LiveServer]:
    """A server around the engine, which has been started; stopped at the end."""
    app = create_app(engine)
    service = app.state.service
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(
            app,
            service.under_way,
            grace_s=grace_s,
            end_sessions=service.live.stop,
            message_bytes=engine.settings.live_message_bytes(),
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield LiveServer(server, app, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


class FakeUtterance:
    """Each block of speech settles a word: w1, w2, …; the result adds "end"."""

    n_skipped = 2

    def __init__(self, options: Options) -> None:
        self.options, self.n_words, self.n_samples = options, 0, 0
        self.stopped = asyncio.Event()
        self.is_cancelled = False

    def tokens(self) -> tuple[Token, ...]:
        return tuple(Token(f" w{i + 1}", f" w{i + 1}".encode(), -0.5) for i in range(self.n_words))

    async def result(self) -> Heard:
        await self.stopped.wait()
        if self.is_cancelled:
            raise ClientGone
        if self.options.prompt == FAIL:
            raise DeviceLost
        if self.options.prompt == HANG:
            await asyncio.Event().wait()
        end = Token(" end", b" end", -0.25)
        text = "".join(token.text for token in (*self.tokens(), end)) if self.n_words else ""
        logprobs = (*self.tokens(), end) if self.options.logprobs and self.n_words else ()
        return Heard(text, "en", self.n_samples / 16_000, logprobs)

    def cancel(self) -> None:
        self.is_cancelled = True
        self.stopped.set()


class FakeListener:
    """Takes a block with sound for speech, and a silent one for its end."""

    made: "list[FakeListener]" = []  # noqa: RUF012
    buffered_s = 0.0

    def __init__(
        self, transcriber: Any, options: Options, *, cutting: Chunking | None, on_words: Callable[..., None]
    ) -> None:
        self.transcriber, self.options, self.cutting, self._on_words = transcriber, options, cutting, on_words
        self.open: FakeUtterance | None = None
        self.all: list[FakeUtterance] = []
        self.n_samples = self._n_ended = 0
        self.blocks: list[np.ndarray[Any, Any]] = []
        self.is_closed = False
        self.made.append(self)

    async def hear(self, samples: "np.ndarray[Any, Any]") -> list[Border]:
        borders: list[Any] = []
        self.blocks.append(samples)
        has_speech = bool(np.abs(samples[-50:]).max() > 0.01)  # the resampler brings speech a little late
        if self.open is None and (has_speech or self.cutting is None):
            borders.append(self._start())
        self.n_samples += len(samples)
        if self.open is not None:
            self.open.n_samples += len(samples)
            if has_speech and len(samples) > 800:  # less is what was left in the resampler
                self.open.n_words += 1
                logprobs = self.open.tokens()[-1:] if self.options.logprobs else ()
                words = Words(f" w{self.open.n_words}", logprobs, " perhaps", 0.1)
                asyncio.get_running_loop().call_soon(self._on_words, self.open, words)
                await asyncio.sleep(0)
            elif not has_speech and self.cutting is not None:
                borders.append(self._stop())
        return borders

    def commit(self) -> list[Border]:
        if self.n_samples - self._n_ended < 1600:
            raise NothingToCommit
        borders: list[Any] = [] if self.open is not None else [self._start()]
        return [*borders, self._stop()]

    def _start(self) -> Started:
        self.open = FakeUtterance(self.options)
        self.all.append(self.open)
        return Started(self.open, self.n_samples / 16_000)  # type: ignore[arg-type]

    def _stop(self) -> Stopped:
        ended, self.open = self.open, None
        assert ended is not None
        ended.stopped.set()
        self._n_ended = self.n_samples
        return Stopped(ended, self.n_samples / 16_000)  # type: ignore[arg-type]

    def clear(self) -> None:
        if self.open is not None:
            self.open.cancel()
            self.open = None
        self._n_ended = self.n_samples

    def close(self) -> None:
        self.is_closed = True
        for utterance in self.all:
            utterance.cancel()
