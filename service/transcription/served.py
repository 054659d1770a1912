"""The models that a server has in addition to its default: each is read, loaded and freed separately."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from service import errors
from service.models.catalogue import Catalogue, Entry
from service.models.loaded import read_model
from service.models.store import Record, remove
from service.transcription.shared import Shared
from service.transcription.transcriber import Transcriber

log = logging.getLogger("wisp")


@dataclass(eq=False)
class _Served:
    """One model: the state of its files when it was read, and its transcriber."""

    entry: Entry
    state: tuple[object, ...]
    transcriber: "Future[Transcriber]" = field(default_factory=Future)
    n_claims: int = 0  # requests that are about to submit a transcription

    def result(self) -> Transcriber | None:
        """Its transcriber once it has been read, else None."""
        future = self.transcriber
        return future.result() if future.done() and future.exception() is None else None

    def n_users(self) -> int:
        """Requests that would fail without it."""
        transcriber = self.result()
        return self.n_claims + (transcriber.n_under_way if transcriber is not None else 0)


class ServedModels:
    """The catalogue, and the transcribers of the models requested so far. Thread-safe."""

    def __init__(self, catalogue: Catalogue, shared: Shared, default: Callable[[], Transcriber | None]) -> None:
        """`default`: the default model's transcriber, once it is loaded."""
        self.catalogue, self._shared, self._default = catalogue, shared, default
        self._lock = threading.RLock()
        self._served: dict[str, _Served] = {}  # by the entry's name
        self._removing: set[str] = set()
        self._threads: set[threading.Thread] = set()
        self._is_closed = False

    def transcribers(self) -> list[Transcriber]:
        """All that exist, the default's first; their models may be unloaded."""
        with self._lock:
            found = [self._default(), *(served.result() for served in self._served.values())]
        return [transcriber for transcriber in found if transcriber is not None]

    def transcriber(self, entry: Entry) -> Transcriber | None:
        """That model's transcriber, if it exists already."""
        return next((found for found in self.transcribers() if found.model.name == entry.name), None)

    @contextmanager
    def claimed(self, entry: Entry) -> "Iterator[Future[Transcriber]]":
        """A block in which a model other than the default is neither removed nor replaced. Gives its transcriber.

        The first block starts to read the files, in a thread. Later ones share the result, or the failure, until the
        files change. Raises ModelNotFound, ModelBeingRemoved; the future raises ModelBroken.
        """
        with self._lock:
            served = self._claim(entry)
            served.n_claims += 1
        try:
            yield served.transcriber
        finally:
            with self._lock:
                served.n_claims -= 1

    def _claim(self, entry: Entry) -> _Served:
        if entry.name in self._removing:
            raise errors.ModelBeingRemoved(entry.name)
        if self._is_closed or not entry.path.exists():
            raise errors.ModelNotFound(entry.name, [])  # without others' names: the key may be limited to some
        # The upload took time, in which the model may have been pulled again.
        entry = next((other for other in self.catalogue.entries() if other.name == entry.name), entry)
        served, state = self._served.get(entry.name), entry.state()
        if served is not None and served.state != state:
            with suppress(errors.ModelInUse):  # then this request gets it as it was read
                self._let_go(served)
                served = None
        if served is None:
            served = self._served[entry.name] = _Served(entry, state)
            thread = threading.Thread(target=self._open, args=(served,), name=f"wisp-read-{entry.name}", daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:  # the system's limit of threads
                self._threads.discard(thread)
                del self._served[entry.name]
                raise errors.Overloaded from None
        return served

    def _open(self, served: _Served) -> None:
        try:
            transcriber = self._read(served.entry)
        except BaseException as error:
            log.error("model %s: %s", served.entry.name, error, exc_info=not isinstance(error, errors.WispError))
            # Its own files are not at fault: the next request tries again.
            if not isinstance(error, errors.ModelError) or isinstance(error, errors.TokenizerMissing):
                with self._lock:
                    self._served.pop(served.entry.name, None)
            broken = errors.ModelBroken(served.entry.name)
            broken.__cause__ = error
            served.transcriber.set_exception(broken)
        else:
            served.transcriber.set_result(transcriber)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _read(self, entry: Entry) -> Transcriber:
        """Read its files; the first transcription loads it. Raises StartError."""
        shared, asked = self._shared, self._shared.settings.target
        default = self._default()
        if asked == "auto" and entry.spec.target is None and default is not None:
            asked = default.model.target.name
        read = read_model(entry.spec, asked)
        return Transcriber(shared.make_model(read), shared.guest(), shared)

    def unload(self, entry: Entry) -> bool:
        """Free its memory until the next request; False if it holds none. Raises ModelInUse."""
        transcriber = self.transcriber(entry)
        return transcriber is not None and transcriber.model.room.unload(transcriber.model.occupant)

    def remove(self, entry: Entry) -> None:
        """Free its memory and remove its files. Raises ModelInUse, ModelNotRemovable, ModelError."""
        if entry.spec is self.catalogue.default.spec:
            raise errors.ModelNotRemovable(f"The model '{entry.name}' is the server's default, and stays.")
        if self.catalogue.is_named(entry):
            raise errors.ModelNotRemovable(f"The model '{entry.name}' is named by the server's settings, and stays.")
        if entry.source != "models folder" or Record.read(entry.path) is None:
            raise errors.ModelNotRemovable(
                f"The files of the model '{entry.name}' were not pulled by Wisp ({entry.source}), so it doesn't remove "
                "them."
            )
        with self._lock:
            if entry.name in self._removing:
                raise errors.ModelBeingRemoved(entry.name)
            served = self._served.get(entry.name)
            if served is not None:
                self._let_go(served)
            self._removing.add(entry.name)
        try:
            remove(entry.path)
        finally:
            with self._lock:
                self._removing.discard(entry.name)

    def _let_go(self, served: _Served) -> None:
        """Free its memory and forget it. Raises ModelInUse."""
        if not served.transcriber.done() or served.n_users():
            raise errors.ModelInUse(served.entry.name, max(1, served.n_users()))
        if (transcriber := served.result()) is not None:
            model = transcriber.model
            model.room.forget(model.occupant)
            model.close()
        self._served.pop(served.entry.name, None)

    def close(self) -> None:
        """Wait for reading to end and free all models. Call it when nothing transcribes any more."""
        with self._lock:
            self._is_closed = True
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        for served in self._served.values():
            if (transcriber := served.result()) is not None:
                transcriber.model.close()
