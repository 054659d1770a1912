"""The wiring, and the only place of it: settings → model, guest, transcriber → the ASGI application → a server."""

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.audio import Audio
from service.errors import StartError, WispError
from service.features import SAMPLE_RATE
from service.guest import Guest, GuestError
from service.guest_cache import user_cache_folder
from service.model_files import EMBEDDED_NAME, ModelSpec, find_model, parse_preload
from service.models import ReadModel, read_model
from service.settings import PRELOAD_VARIABLE, Settings
from service.transcriber import Options, Transcriber, Transcription

if TYPE_CHECKING:  # imported where it is used: `wisp transcribe` serves nothing
    from starlette.applications import Starlette
    from starlette.middleware import Middleware

log = logging.getLogger("wisp")

GUEST_WASM = Path(__file__).parent.parent / "assets" / "guest.wasm"
CLOSE_S = 4.0  # how long a server that has stopped waits for what computes: a guest ends between two computes
BACKLOG = 2048  # connections the kernel holds for us until they are accepted
LAST_PORT = 65_535
INTERRUPTED = 130  # a shell's number for a command that Ctrl-C ended
GRACE_FOR_CLIENTS_S = 0.1  # a model just loaded waits this long for requests before it tries itself


def choose_model(settings: Settings) -> ModelSpec:
    """--model or WISP_MODEL, else the preload string's first model, else what find_model takes. Raises ModelError."""
    if not settings.model and settings.preload:
        preloaded = parse_preload(settings.preload)
        if len(preloaded) > 1:
            log.warning("%s names %d models; only the first one is served", PRELOAD_VARIABLE, len(preloaded))
        if preloaded:
            return preloaded[0]
    return find_model(settings.model, settings.models_path())


def audio_of(samples: NDArray[np.float32]) -> Audio:
    """(n_samples,) f32 of 16 kHz mono sound that is in memory already."""
    return Audio(len(samples) / SAMPLE_RATE, "PCM", lambda: (samples,))


class Engine:
    """A model, a guest and their transcriber. Owns all three; close() is idempotent.

    `read()` finds out in a moment whether the model can be had, `load()` gets everything ready in the calling thread,
    `start()` does so in a thread of its own. Then `loaded` ends when transcriptions can run, or with the reason why
    not, and `proven` when a first one really has.
    """

    def __init__(self, settings: Settings, *, guest_wasm: Path = GUEST_WASM, cache_folder: Path | None = None) -> None:
        """Find the model's files; raises ModelError if there are none. Nothing is loaded yet.

        `cache_folder`: where the guest's machine code is kept between starts, which saves most of a second.
        """
        self.settings, self.guest_wasm, self.cache_folder = settings, guest_wasm, cache_folder
        self.spec = choose_model(settings)
        self.created = int(time.time())
        self.loaded: Future[Transcriber] = Future()
        self.proven: Future[None] = Future()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._read: ReadModel | None = None
        self._opened: list[Any] = []
        self.is_closed = False

    def start(self) -> None:
        """Begin to load. A second call does nothing."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wisp-load", daemon=True)
                self._thread.start()

    def read(self) -> ReadModel:
        """Read and check the model's files, once. Raises StartError."""
        if self._read is None:
            self._read = read_model(self.spec, self.settings.target)
        return self._read

    def load(self) -> Transcriber:
        """Load in the calling thread: the guest is compiled while the model is read. Raises StartError."""
        settings = self.settings
        started = time.monotonic()
        with ThreadPoolExecutor(1, thread_name_prefix="wisp-guest") as aside:
            compiling = aside.submit(
                Guest, self.guest_wasm, memory_bytes=settings.guest_memory_bytes, cache_folder=self.cache_folder
            )
            try:
                model = self.read().make_ready()
                self._read = None  # the kernels keep what they need of it
                self._opened.append(model)
            finally:
                guest = self._compiled(compiling)
        transcriber = Transcriber(
            model,
            guest,
            workers=settings.workers,
            open_jobs=settings.open_jobs,
            queue_length=settings.queue_length,
            deadline_floor_s=settings.deadline_floor_s,
            deadline_factor=settings.deadline_factor,
        )
        self._opened.append(transcriber)
        model.add_speech_graph(lambda samples: transcriber.transcribe(audio_of(samples), Options()).text)
        if model.name == EMBEDDED_NAME:
            log.warning(
                "this is the small model that comes with Wisp and errs often: docs/settings.md tells of tiny.en"
            )
        log.info("loaded in %.2f s", time.monotonic() - started)
        return transcriber

    def _compiled(self, compiling: "Future[Guest]") -> Guest:
        try:
            guest = compiling.result()
        except (GuestError, OSError) as error:
            raise StartError(f"The guest cannot be loaded: {error}") from error
        self._opened.append(guest)
        return guest

    def prove(self, transcriber: Transcriber) -> Transcription:
        """A first real inference: a second of a soft tone, through the guest, the graphs and back. Raises WispError."""
        tone = np.sin(np.arange(SAMPLE_RATE, dtype=np.float32) * np.float32(2 * np.pi * 440 / SAMPLE_RATE))
        return transcriber.transcribe(audio_of(tone * np.float32(0.1)), Options(temperature=(0.0,)))

    def _run(self) -> None:
        try:
            transcriber = self.load()
        except BaseException as error:
            log.error("%s", error, exc_info=not isinstance(error, WispError))
            self.loaded.set_exception(error)
            self.proven.set_exception(error)
            return
        self.loaded.set_result(transcriber)
        try:
            # Clients that waited for the model go first, and what succeeds for one of them is proof enough.
            if not transcriber.admission.settle(GRACE_FOR_CLIENTS_S):
                self.prove(transcriber)
            self.proven.set_result(None)
            log.info("ready: the first inference succeeded")
        except BaseException as error:
            log.error("not ready, the first inference failed: %s", error)
            self.proven.set_exception(error)

    def close(self) -> None:
        """Wait for loading to end, stop what runs, free the model and the guest."""
        if self._thread is not None:
            self._thread.join()
        while self._opened:
            self._opened.pop().close()
        self.is_closed = True


def create_app(engine: Engine) -> "Starlette":
    """The ASGI application around one engine, which it starts and closes with its lifespan. Raises StartError."""
    import asyncio

    from starlette.applications import Starlette

    from service import routes

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        # A daemon, so that a computation that takes long keeps neither this nor the process.
        closing = threading.Thread(target=engine.close, name="wisp-close", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_S)

    app = Starlette(
        routes=routes.ROUTES,
        exception_handlers=routes.EXCEPTION_HANDLERS,
        middleware=_middleware(engine.settings),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = routes.Service(engine.settings, engine.spec.name, engine.created, engine.loaded, engine.proven)
    return app


def _middleware(settings: Settings) -> "list[Middleware]":
    """What stands in front of every route, the outermost first. Raises StartError."""
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware

    from service import routes
    from service.api_keys import KeyGuard, read_api_keys
    from service.request_log import RequestLog
    from service.upload_pace import UploadPace

    stack = [Middleware(RequestLog)]
    if origins := settings.cors_origin_list():  # in front of the keys: a browser asks first, without one
        exposed = ["x-request-id", "retry-after"]
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=exposed,
            )
        )
    keys = read_api_keys(settings)
    stack.append(Middleware(KeyGuard, keys=keys, routes=routes.ROUTES, public=routes.PUBLIC_ROUTES))
    stack.append(Middleware(UploadPace, floor_s=settings.upload_floor_s, bytes_per_s=settings.upload_bytes_per_s))
    return stack


def _log_request_ids() -> None:
    """Every log line of a request carries its id, in whatever thread it is written."""
    from service.request_log import request_id

    def tag(record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(tag)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(request_id)s %(message)s"))


def serve(settings: Settings) -> None:
    """Serve until told to stop. Raises StartError, before anything listens, for keys, address, model or port."""
    from service.api_keys import read_api_keys, refuse_to_expose
    from service.server import Server

    refuse_to_expose(settings, read_api_keys(settings))
    engine = Engine(settings, cache_folder=user_cache_folder())
    engine.read()
    _log_request_ids()
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, settings.logging_level()))  # our lines say more
    app = create_app(engine)
    server = Server(app, app.state.service.under_way, grace_s=settings.grace_s)
    with _listen(settings.host, settings.port) as listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        log.info("listening on http://%s:%d (loading the model)", host, listener.getsockname()[1])
        try:
            server.run(sockets=[listener])
        finally:
            if not engine.is_closed:
                log.warning("ended while a computation still ran")
                logging.shutdown()
                os._exit(INTERRUPTED)  # the interpreter's own end would wait for it


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
        )
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        other = port + 1 if port < LAST_PORT else port - 1
        example = f" (WISP_PORT={other} make run)" if error.errno == errno.EADDRINUSE else ""
        sentence = (
            f"Cannot listen on {host} port {port}: {reason}; choose others with --host and --port "
            f"or WISP_HOST and WISP_PORT{example}."
        )
        raise StartError(sentence) from None
