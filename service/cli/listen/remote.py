"""Has a server transcribe live sound: a client of /v1/realtime."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from service.audio.decode import Samples
from service.audio.pcm import PcmDecoder, PcmFormat
from service.cli.listen.captions import Ordered, Utterance
from service.cli.listen.ear import Complain
from service.errors import StartError
from service.http.realtime.names import HYPOTHESES, SILENCE_MS, TRANSCRIPTION
from service.transcription.types import Options

RATE = 24_000  # Hz, OpenAI's
PATIENCE_S = 30.0  # for the connection, and for the session
MAX_EVENT_BYTES = 16 * 1024 * 1024
SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
LAST_COMMIT = "wisp-listen-end"  # the event_id of the commit at the end
NOTHING_LEFT = "input_audio_buffer_commit_empty"


def websocket_url(url: str) -> str:
    """The address of a server's live sessions. `url`: with or without /v1. Raises ValueError with one sentence."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ValueError(f"--url is '{url}'; it must be a server's address, such as http://localhost:8080.")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{SCHEMES[parts.scheme]}://{parts.netloc}{path}/v1/realtime?intent=transcription"


def session(options: Options, model: str) -> dict[str, Any]:
    """The session to request."""
    transcription = {
        "model": model,
        "language": options.language,
        "prompt": options.prompt,
        "keywords": list(options.keywords),
    }
    heard = {
        "format": {"type": "audio/pcm", "rate": RATE},
        "transcription": {name: value for name, value in transcription.items() if value},
        "turn_detection": {"type": "server_vad", "silence_duration_ms": SILENCE_MS},
    }
    return {"type": "transcription", "include": [HYPOTHESES], "audio": {"input": heard}}


class RemoteEar:
    """See Ear."""

    def __init__(
        self, socket: ClientConnection, captions: Ordered, complain: Complain, on_failure: Callable[[], None]
    ) -> None:
        self._socket, self._captions, self._complain, self._on_failure = socket, captions, complain, on_failure
        self._decoder = PcmDecoder(RATE)
        self._utterances: dict[str, Utterance] = {}  # unfinished ones, by item
        self._ready, self._cleared, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._failure: StartError | OSError | None = None
        self._is_ending = False
        self._receiving = asyncio.create_task(self._receive())

    async def begin(self, session: dict[str, Any]) -> None:
        """Request a session and wait for it. Raises StartError."""
        await self._send("session.update", session=session)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._until(self._ready.is_set)
        except TimeoutError:
            raise StartError(f"The server started no session within {PATIENCE_S:g} s.") from None

    async def hear(self, format: PcmFormat, data: bytes) -> None:
        """See Ear."""
        await self._append(self._decoder(format, data))

    async def end(self) -> None:
        """See Ear."""
        self._is_ending = True
        await self._append(self._decoder.rest())
        await self._send("input_audio_buffer.commit", event_id=LAST_COMMIT)
        # Once it is answered, so is everything before it, and all utterances are known.
        await self._send("input_audio_buffer.clear")
        await self._until(lambda: self._cleared.is_set() and not self._utterances)

    def close(self) -> None:
        """Receive nothing more."""
        self._receiving.cancel()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    async def _append(self, samples: Samples) -> None:
        if samples.size:
            pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()
            await self._send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())

    async def _send(self, kind: str, **values: Any) -> None:
        try:
            await self._socket.send(json.dumps({"type": kind, **values}))
        except ConnectionClosed:
            await asyncio.wait((self._receiving,))  # it finds out the reason

    async def _receive(self) -> None:
        try:
            async for message in self._socket:
                self._take(json.loads(message))
                self._changed.set()
            reason = f": {self._socket.close_reason}" if self._socket.close_reason else ""
            raise StartError(f"The server ended the session{reason.rstrip('.')}. Run the command again to continue.")
        except ConnectionClosed:
            self._fail(StartError("The connection to the server is lost."))
        except (StartError, OSError) as error:
            self._fail(error)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._fail(StartError("The server sent something other than realtime events."))

    def _fail(self, error: StartError | OSError) -> None:
        self._failure = error
        self._changed.set()
        self._on_failure()

    def _take(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.updated":
                self._ready.set()
            case "input_audio_buffer.cleared":
                self._cleared.set()
            case "input_audio_buffer.speech_started":
                self._utterances[event["item_id"]] = self._captions.start(event["audio_start_ms"] / 1000)
            case "input_audio_buffer.speech_stopped":
                self._utterance(event).end = event["audio_end_ms"] / 1000
            case "input_audio_buffer.committed":
                self._utterance(event)
            case "error":
                self._error(event["error"])
            case kind if kind.startswith(f"{TRANSCRIPTION}."):
                self._transcribed(kind.removeprefix(f"{TRANSCRIPTION}."), event)

    def _transcribed(self, what: str, event: dict[str, Any]) -> None:
        utterance = self._utterance(event)
        match what:
            case "delta":
                new, rest = event["delta"], utterance.rest
                self._captions.heard(utterance, new, rest.removeprefix(new) if rest.startswith(new) else "")
            case "hypothesis":
                self._captions.heard(utterance, "", event["text"])
            case "completed":
                languages = event.get("languages") or [{}]
                self._captions.finish(utterance, event["transcript"], languages[0].get("code", ""))
                del self._utterances[event["item_id"]]
            case "failed":
                self._complain(f"the speech from {utterance.start:g} s: {event['error']['message']}")
                self._captions.fail(utterance)
                del self._utterances[event["item_id"]]

    def _utterance(self, event: dict[str, Any]) -> Utterance:
        """The event's utterance. If the last commit made it, no event has reported its start."""
        item = event["item_id"]
        if item not in self._utterances:
            self._utterances[item] = self._captions.start(0.0)
        return self._utterances[item]

    def _error(self, error: dict[str, Any]) -> None:
        if error.get("code") != NOTHING_LEFT or error.get("event_id") != LAST_COMMIT:
            raise StartError(f"The server says: {error['message']}")


@asynccontextmanager
async def remote_ear(
    url: str,
    api_key: str,
    session: dict[str, Any],
    captions: Ordered,
    complain: Complain,
    on_failure: Callable[[], None],
) -> AsyncIterator[RemoteEar]:
    """A block with an ear connected to a server. `url`: see websocket_url(). Raises StartError."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        # Without pings: a server with much pending sound reads nothing, and so answers none.
        socket = await connect(
            url, additional_headers=headers, max_size=MAX_EVENT_BYTES, open_timeout=PATIENCE_S, ping_interval=None
        )
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise StartError(f"Cannot connect to {url.partition('?')[0]}: {_reason(error)}.") from None
    ear = RemoteEar(socket, captions, complain, on_failure)
    try:
        await ear.begin(session)
        yield ear
    finally:
        ear.close()
        await socket.close()


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidStatus):
        try:
            return str(json.loads(error.response.body or b"")["error"]["message"]).rstrip(".")
        except (ValueError, KeyError, TypeError):
            return f"its answer is HTTP {error.response.status_code}"
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE_S:g} s"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).rstrip(".")
