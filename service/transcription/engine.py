"""A model, a guest and their transcriber: finds, loads, proves (by a first inference) and closes them."""

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from service.audio.log_mel import SAMPLE_RATE
from service.errors import ModelError, WispError
from service.guest.runner import Guest
from service.models.better import embedded_notice
from service.models.catalogue import Catalogue
from service.models.loaded import Model, ReadModel, read_model
from service.models.names import model_candidates
from service.models.places import EMBEDDED_NAME
from service.settings import Settings
from service.transcription.reading import audio_of
from service.transcription.run import Run
from service.transcription.served import ServedModels
from service.transcription.shared import Shared
from service.transcription.transcriber import Options, Transcriber, Transcription

log = logging.getLogger("wisp")

GUEST_WASM = Path(__file__).parents[2] / "assets" / "guest.wasm"
GRACE_FOR_CLIENTS_S = 0.1  # a newly loaded model waits this long for requests before it runs its own


class Engine:
    """A model, a guest and their transcriber. Owns all three; close() is idempotent.

    `read()` quickly checks whether the model is usable, `load()` loads everything in the calling thread, `start()` does
    so in its own thread. Then `loaded` ends once transcriptions can run, or with the reason why they can't, and
    `proven` once a first one has succeeded.
    """

    def __init__(self, settings: Settings, *, guest_wasm: Path = GUEST_WASM, cache_folder: Path | None = None) -> None:
        """Find the model's files; raises ModelError if there are none. Loads nothing yet.

        `cache_folder`: where the guest's machine code is kept between starts, which saves most of a second.
        """
        self.settings, self.guest_wasm, self.cache_folder = settings, guest_wasm, cache_folder
        self._candidates = model_candidates(settings)
        self.spec = self._candidates[0]
        self.created = int(time.time())
        self.loaded: Future[Transcriber] = Future()
        self.proven: Future[None] = Future()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._read: ReadModel | None = None
        self._opened: list[Model] = []
        self.shared = Shared(settings, self._compile)
        self.served = ServedModels(Catalogue(settings, lambda: self.spec), self.shared, lambda: self.transcriber)
        self._closing = threading.Event()
        self.is_closed = False

    def start(self) -> None:
        """Start loading. Further calls do nothing."""
        with self._lock:
            if self._thread is None:
                from service.audio.decoder_client import warm_up  # here: `wisp transcribe` may not need it

                warm_up()
                self._thread = threading.Thread(target=self._run, name="wisp-load", daemon=True)
                self._thread.start()

    def read(self) -> ReadModel:
        """Read and check the model's files, once; if a default is damaged, those of the next. Raises StartError."""
        while self._read is None:
            try:
                self._read = read_model(self.spec, self.settings.target)
            except ModelError as error:
                if self.spec is self._candidates[-1]:
                    raise
                following = self._candidates[self._candidates.index(self.spec) + 1]
                log.warning("%s Using the next model instead: %s, from %s.", error, following.name, following.weights)
                self.spec = following
        return self._read

    def load(self) -> Transcriber:
        """Load in the calling thread; compiles the guest while reading the model. Raises StartError."""
        settings, shared = self.settings, self.shared
        started = time.monotonic()
        with ThreadPoolExecutor(1, thread_name_prefix="wisp-guest") as aside:
            compiling = aside.submit(shared.guest)
            try:
                read = self.read()
                model = shared.make_model(read)
                self._opened.append(model)
                self._read = None
                del read  # the kernels keep what they need of it
                model.load()
            finally:
                guest = compiling.result()
        transcriber = Transcriber(model, guest, shared)
        if model.name == EMBEDDED_NAME:
            log.warning("%s", embedded_notice(settings))
        log.info("loaded in %.2f s", time.monotonic() - started)
        return transcriber

    def _compile(self) -> Guest:
        return Guest(self.guest_wasm, memory_bytes=self.settings.guest_memory_bytes, cache_folder=self.cache_folder)

    def prove(self, transcriber: Transcriber, run: Run | None = None) -> Transcription:
        """Run a real inference: a second of a soft hum through the guest and the graphs. Raises WispError."""
        # At 440 Hz tiny.en hears words, which take three times as long.
        tone = np.sin(np.arange(SAMPLE_RATE, dtype=np.float32) * np.float32(2 * np.pi * 100 / SAMPLE_RATE))
        return transcriber.transcribe(audio_of(tone * np.float32(0.1)), Options(temperature=(0.0,)), run=run)

    @property
    def transcriber(self) -> Transcriber | None:
        """The transcriber once the model is loaded, else None."""
        return self.loaded.result() if self.loaded.done() and self.loaded.exception() is None else None

    def device_bytes(self) -> int:
        """GPU memory in use; 0 on the CPU."""
        return sum(transcriber.model.device_bytes() for transcriber in self.served.transcribers())

    def device_failures(self) -> int:
        """GPU losses and failed openings in a row, without a transcription in between."""
        return self.transcriber.model.device_failures if self.transcriber else 0

    def models(self) -> list[tuple[str, bool, int]]:
        """(name, whether it is in memory, its bytes there) of each model requested so far, the default first."""
        found = [(self.spec.name, False, 0)] if self.transcriber is None else []
        for transcriber in self.served.transcribers():
            model = transcriber.model
            found.append((model.name, model.is_loaded, model.occupant.n_bytes if model.is_loaded else 0))
        return found

    def is_loaded(self) -> bool:
        """Whether the default model is in memory."""
        return self.transcriber is not None and self.transcriber.model.is_loaded

    def _run(self) -> None:
        self._load_and_prove()
        if idle_s := self.settings.idle_unload_s:
            while not self._closing.wait(min(1.0, idle_s / 4)):
                try:
                    self.shared.unload_idle(idle_s)
                except Exception:
                    log.exception("an idle model cannot be unloaded")

    def _load_and_prove(self) -> None:
        try:
            transcriber = self.load()
        except BaseException as error:
            log.error("%s", error, exc_info=not isinstance(error, WispError))
            self.loaded.set_exception(error)
            self.proven.set_exception(error)
            return
        self.loaded.set_result(transcriber)
        try:
            # Clients that waited for the model go first; its success for one of them is proof enough.
            if not (transcriber.admission.settle(GRACE_FOR_CLIENTS_S) and transcriber.is_proven(0.0)):
                self.prove(transcriber)
            self.proven.set_result(None)
            log.info("ready: the first inference succeeded")
        except BaseException as error:
            log.error("not ready, the first inference failed: %s", error)
            self.proven.set_exception(error)

    def close(self) -> None:
        """Wait for loading to end, stop running transcriptions, free the models and the guest."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.shared.stop()
        self.served.close()
        while self._opened:
            self._opened.pop().close()
        self.shared.close()
        self.is_closed = True
