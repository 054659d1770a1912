"""Shared by all models of a server: the guest, the transcriptions' threads and turns, the room in memory."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import StartError
from service.guest.runner import Guest, GuestError
from service.models.loaded import Model, ReadModel
from service.models.room import Limits, Room
from service.models.sizes import SHARE, device_bytes, machine_bytes
from service.models.target import Target
from service.settings import Settings
from service.transcription.admission import Admission
from service.transcription.run import Run
from service.transcription.turns import Turns

GPU_WORKERS, CORES_A_WORKER = 16, 4
N_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(target: Target, n_cores: int = N_CORES) -> int:
    """Transcriptions that compute in parallel by default.

    A GPU decodes that many in the same launches, and a large one encodes as many. On the CPU, one transcription uses
    all cores where its work can be divided, and a few of them to decode a token.
    """
    if target.name == "gpu" and not target.is_software:
        return GPU_WORKERS
    return max(2, n_cores // CORES_A_WORKER)


@dataclass(frozen=True)
class Desk:
    """Where one target's transcriptions work: threads and places, turns to read and to compute."""

    admission: Admission
    reading: Turns
    computing: Turns


class Shared:
    """Each part is made when first needed. Thread-safe; close() is idempotent."""

    def __init__(self, settings: Settings, compile_guest: Callable[[], Guest]) -> None:
        self.settings = settings
        self.observers: list[Callable[[Run], None]] = []  # called with every request's run once it has ended
        # Called with a model's name and the seconds that loading took, or None when it has been unloaded.
        self.model_observers: list[Callable[[str, float | None], None]] = []
        self._compile = compile_guest
        self._lock = threading.Lock()
        self._guest: Guest | None = None
        self._desks: dict[str, Desk] = {}
        self._rooms: dict[str, Room] = {}

    def guest(self) -> Guest:
        """The compiled guest. Raises StartError."""
        with self._lock:
            if self._guest is None:
                try:
                    self._guest = self._compile()
                except (GuestError, OSError) as error:
                    raise StartError(f"The guest cannot be loaded: {error}") from error
            return self._guest

    def workers(self, target: Target) -> int:
        """Transcriptions that compute in parallel on that target."""
        return self.settings.workers or min(default_workers(target), self.settings.n_open())

    def desk(self, target: Target) -> Desk:
        """The desk of the models on that target."""
        with self._lock:
            if target.name not in self._desks:
                self._desks[target.name] = self._new_desk(self.workers(target))
            return self._desks[target.name]

    def _new_desk(self, workers: int) -> Desk:
        for other in self._desks.values():
            return Desk(other.admission, other.reading, Turns(workers))
        settings = self.settings
        admission = Admission(n_open=settings.n_open(), queue_length=settings.queue_length, n_at_once=workers)
        return Desk(admission, Turns(min(workers, N_CORES)), Turns(workers))

    def room(self, target: Target) -> Room:
        """The room of the models on that target: one for all, except on a GPU with its own memory."""
        given = self.settings.model_memory
        own = None if given else _own_bytes(target)
        with self._lock:
            kind = "machine" if own is None else "gpu"
            if kind not in self._rooms:
                self._rooms[kind] = Room(Limits(given, given) if given else lambda: _limits(own or machine_bytes()))
            return self._rooms[kind]

    def make_model(self, read: ReadModel) -> Model:
        """The model, not loaded yet, in its target's room."""
        target = read.target
        return Model(read, workers=self.workers(target), room=self.room(target), observe=self.observe_model)

    def house(self, model: Model) -> None:
        """Move a model that nobody uses yet to its target's room, after a fallback from the GPU to the CPU."""
        room = self.room(model.target)
        if model.room is not room and model.room in list(self._rooms.values()):
            room.take_over(model.occupant, model.room)
            model.room = room

    def admission(self) -> Admission | None:
        """The admission of all models; None before the first is read."""
        desks = list(self._desks.values())
        return desks[0].admission if desks else None

    def n_running(self) -> int:
        """Transcriptions that are computing."""
        desks = list(self._desks.values())
        return sum(desk.computing.n_held for desk in desks) + sum(desk.reading.n_held for desk in desks[:1])

    def n_waiting(self) -> int:
        """Transcriptions waiting for a turn, for room, or for another to end."""
        admission = self.admission()
        return max(0, admission.n_admitted - self.n_running()) if admission is not None else 0

    def observe_run(self, run: Run) -> None:
        """Report a run that has ended to the observers."""
        for observer in self.observers:
            observer(run)

    def observe_model(self, name: str, seconds: float | None) -> None:
        """Report a model's loading or unloading to the observers."""
        for observer in self.model_observers:
            observer(name, seconds)

    def unload_idle(self, idle_s: float) -> None:
        """Unload all models that nobody has used for `idle_s` seconds."""
        for room in list(self._rooms.values()):
            room.unload_idle(idle_s)

    def stop(self) -> None:
        """Cancel all transcriptions and end their threads."""
        admission = self.admission()
        if admission is not None:
            admission.close()

    def close(self) -> None:
        """Free the guest, after the models."""
        self.stop()
        with self._lock:
            if self._guest is not None:
                self._guest.close()


def _own_bytes(target: Target) -> int | None:
    """A GPU's own memory, if it has any and its driver reports it."""
    return (device_bytes() or None) if target.name == "gpu" and not target.is_software else None


def _limits(n_bytes: int) -> Limits:
    """Models get a share of the memory; a single one may take all of it."""
    return Limits(int(n_bytes * SHARE), n_bytes)
