"""The loaded model: its tokenizer, its WASI-NN graphs, what it holds on the device."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from kernels.checkpoints.common import NoTokenizer
from kernels.checkpoints.load import Checkpoint, CheckpointError, Dimensions, load_checkpoint
from service.errors import DeviceLost, DeviceUnavailable, ModelError
from service.guest.wasi_nn import Graph
from service.models.graphs import TokenizerGraph
from service.models.languages import language_name
from service.models.names import ModelSpec, check_files
from service.models.places import tokenizer_for
from service.models.residence import Residence
from service.models.room import Limits, Occupant, Room
from service.models.sizes import loaded_bytes
from service.models.target import Target, choose_target, wanted_target
from service.models.tokenizer import Tokenizer
from service.settings import PRELOAD_VARIABLE

log = logging.getLogger("wisp")

REOPEN_S = 5.0  # how soon after a GPU could not be opened the next try may be


class Kernels(Protocol):
    """A checkpoint made ready to compute, by either target."""

    @property
    def encoder(self) -> Graph: ...

    @property
    def decoder(self) -> Graph: ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class _Loaded:
    """Kernels, and all the graphs that a guest may load by name while they are the model's."""

    kernels: Kernels
    graphs: Mapping[str, Graph]


class Model:
    """A model and the graphs a guest may load by name. close() is idempotent; no graph computes after it."""

    def __init__(
        self,
        spec: ModelSpec,
        dims: Dimensions,
        tokenizer: Tokenizer,
        target: Target,
        load_kernels: Callable[[], tuple[Kernels, Target]],
        *,
        num_beams: int = 1,
        condition_on_prev_tokens: bool = True,
        n_bytes: int = 0,
        room: Room | None = None,
        observe: Callable[[str, float | None], None] = lambda name, seconds: None,
    ) -> None:
        """`load_kernels` makes them, whenever the model is used and not in memory; how to decode, as the checkpoint
        asks for.

        `n_bytes`: what it will take of `room`. `observe`: called with the name and the seconds that loading took, or
        None when it has been unloaded.
        """
        self.name = spec.name
        self.language = spec.language  # Whisper's code, where the preload string says one
        self.dims = dims
        self.tokenizer = tokenizer
        self.target = target
        self.num_beams = num_beams
        self.condition_on_prev_tokens = condition_on_prev_tokens
        self.device_failures = 0  # how often in a row the GPU was lost or could not be opened, no success in between
        self._reopen_at = -math.inf  # by time.monotonic()
        self._graphs: dict[str, Graph] = {f"{self.name}/tokenizer": TokenizerGraph(tokenizer)}
        self._load_kernels, self._observe = load_kernels, observe
        self._has_loaded = False
        self._loaded = Residence(load=self._load, unload=self._unload)
        self.room = room or Room(Limits(sys.maxsize, sys.maxsize))
        self.occupant = Occupant(self.name, n_bytes, lambda: self.is_loaded, self.unload)

    def _with_graphs(self, kernels: Kernels) -> _Loaded:
        own = {f"{self.name}/encoder": kernels.encoder, f"{self.name}/decoder": kernels.decoder}
        return _Loaded(kernels, own | self._graphs)

    def _load(self) -> _Loaded:
        started = time.monotonic()
        if started < self._reopen_at:
            raise DeviceLost(self._reopen_at - started)
        try:
            kernels, self.target = self._load_kernels()
        except DeviceUnavailable as error:
            if not self._has_loaded:
                raise
            self.device_failures += 1
            self._reopen_at = time.monotonic() + REOPEN_S
            log.error("%s", error)
            raise DeviceLost(REOPEN_S) from error
        seconds = time.monotonic() - started
        if self._has_loaded:
            log.info("model %s loaded again in %.2f s", self.name, seconds)
        else:
            log.info("model %s on the %s target. %s", self.name, self.target.name, self.target.reason)
            if self.target.is_software:
                log.warning("the GPU's driver is software, which the CPU target outruns: --target cpu is faster here")
        self._has_loaded = True
        self._observe(self.name, seconds)
        return self._with_graphs(kernels)

    def _unload(self, loaded: _Loaded) -> None:
        loaded.kernels.close()
        self._observe(self.name, None)

    @property
    def is_loaded(self) -> bool:
        """Whether it is in memory, ready to compute."""
        return self._loaded.thing is not None

    @contextmanager
    def in_use(self, length: int = 0, check: Callable[[], None] = lambda: None) -> Iterator[Mapping[str, Graph]]:
        """A block in which it is loaded, and its graphs. Waits for room in memory, see Room.using().

        Raises ModelTooLarge, ModelError where it cannot be loaded, DeviceLost where there is no device for it, and in
        place of what fails in the block because the device has gone. Then the next block has another device.
        """
        with self.room.using(self.occupant, length, check), self.in_use_again() as graphs:
            yield graphs

    @contextmanager
    def in_use_again(self) -> Iterator[Mapping[str, Graph]]:
        """The same within such a block."""
        with self._loaded.in_use() as loaded:
            try:
                yield loaded.graphs
            except Exception as error:
                if not (isinstance(loaded.kernels, _GpuKernels) and loaded.kernels.is_lost()):
                    raise
                if self._loaded.discard(loaded):
                    self.device_failures += 1
                    log.error("the GPU is lost, and is opened anew for the next request")
                raise DeviceLost from error
            if self._loaded.thing is loaded:  # else what has ended well is no word on the device that comes next
                self.device_failures = 0
                if held_bytes := self.device_bytes():
                    self.room.measured(self.occupant, held_bytes)

    def load(self) -> None:
        """Load it, if it isn't. Raises as in_use() does."""
        with self.in_use():
            pass

    def unload(self, idle_s: float = 0.0) -> bool:
        """Free what it holds, on the device and off it, unless it was used in the last `idle_s` seconds."""
        is_unloaded = self._loaded.unload(idle_s)
        if is_unloaded:
            log.info("model %s unloaded", self.name)
        return is_unloaded

    @property
    def graphs(self) -> Mapping[str, Graph]:
        """NAME/encoder and NAME/decoder while loaded, NAME/tokenizer."""
        loaded = self._loaded.thing
        return loaded.graphs if loaded is not None else self._graphs

    def device_bytes(self) -> int:
        """Memory of the GPU that is held; 0 on the CPU."""
        loaded = self._loaded.thing
        return loaded.kernels.device_bytes() if loaded is not None and isinstance(loaded.kernels, _GpuKernels) else 0

    def close(self) -> None:
        """Free what the model holds on the device."""
        self._loaded.close()


@dataclass(frozen=True)
class ReadModel:
    """A model whose files have been read and found whole, and the target it will run on; nothing is computed yet."""

    spec: ModelSpec
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    target: Target
    may_fall_back: bool  # to the CPU, because the GPU was Wisp's choice and nobody's wish

    def make_ready(self) -> Model:
        """The model with its kernels prepared: seconds on some devices. Raises DeviceUnavailable."""
        model = self.make_idle()
        model.load()
        return model

    def make_idle(
        self,
        *,
        workers: int = 1,
        room: Room | None = None,
        observe: Callable[[str, float | None], None] = lambda name, seconds: None,
    ) -> Model:
        """The model, which its first user will load into `room`, with as many at once as `workers`."""
        checkpoint = self.checkpoint
        spec, first = self.spec, [checkpoint]  # the kernels keep what they need of the latter
        target, may_fall_back = self.target, self.may_fall_back

        def load_kernels() -> tuple[Kernels, Target]:
            nonlocal target, may_fall_back
            found = first.pop() if first else read_checkpoint(spec)
            kernels, target = _kernels(found, target, may_fall_back)
            may_fall_back = False
            return kernels, target

        return Model(
            self.spec,
            checkpoint.dims,
            self.tokenizer,
            target,
            load_kernels,
            num_beams=checkpoint.num_beams,
            condition_on_prev_tokens=checkpoint.condition_on_prev_tokens,
            n_bytes=loaded_bytes(checkpoint.dims, workers),
            room=room,
            observe=observe,
        )


def read_model(spec: ModelSpec, target: str = "auto") -> ReadModel:
    """Read the checkpoint and choose the target as wanted_target() says.

    Raises ModelError (files missing, broken, of another model, not of the preload string's language) or
    DeviceUnavailable, each with what to do.
    """
    asked = wanted_target(spec, target)
    chosen = choose_target(asked)
    checkpoint = read_checkpoint(spec)
    tokenizer = tokenizer_of(checkpoint)
    if spec.language is not None and not tokenizer.speaks(spec.language):
        raise ModelError(
            f"The model '{spec.name}' does not know {language_name(spec.language).capitalize()} ('{spec.language}'), "
            f"which {PRELOAD_VARIABLE} says it is to transcribe: leave the language out there, or take another model."
        )
    return ReadModel(spec, checkpoint, tokenizer, chosen, may_fall_back=asked == "auto")


def read_checkpoint(spec: ModelSpec) -> Checkpoint:
    """The files that `spec` names, read and checked. Raises ModelError."""
    check_files(spec)
    trouble = f"The model '{spec.name}' cannot be loaded"
    try:
        return load_checkpoint(
            spec.weights,
            config=spec.config,
            tokenizer=spec.tokenizer,
            tokenizer_for=lambda dims: tokenizer_for(dims.n_vocab, spec.models_dir),
        )
    except NoTokenizer as error:
        raise ModelError(
            f"{trouble}: {error}. Any model of that kind that is found here lends its own: "
            f"wisp models pull {'tiny' if error.is_multilingual else 'tiny.en'} fetches one."
        ) from error
    except CheckpointError as error:
        advice = "Fetch its files again, or name" if error.may_be_damage else "Name"
        raise ModelError(f"{trouble}: {error}. {advice} another with --model.") from error


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """What its tokenizer.json says, read and checked. Raises ModelError."""
    return Tokenizer(checkpoint.tokenizer_json, checkpoint.dims.n_vocab, checkpoint.is_multilingual)


def load_model(spec: ModelSpec, target: str = "auto") -> Model:
    """A model from its files to its graphs, in one call. Raises as its two steps do."""
    return read_model(spec, target).make_ready()


def _kernels(checkpoint: Checkpoint, target: Target, may_fall_back: bool) -> tuple[Kernels, Target]:
    """The checkpoint ready to compute on `target`, or on the CPU where a GPU does not do and it may."""
    if target.name == "gpu":
        try:
            return _GpuKernels(checkpoint, target), target
        except DeviceUnavailable as error:
            if not may_fall_back:
                raise
            target = Target("cpu", f"{target.reason} But: {error}")
    from kernels.cpu.model import CpuModel

    return CpuModel(checkpoint), target


class _GpuKernels:
    """A model on a device of its own, closed with it."""

    def __init__(self, checkpoint: Checkpoint, target: Target) -> None:
        """On an adapter of the sort that `target` was chosen for: a GPU that is lost is not replaced by its emulation.

        Raises DeviceUnavailable.
        """
        from kernels.webgpu.device import DeviceError, open_device
        from kernels.webgpu.model import GpuModel

        try:
            self._device = open_device("software" if target.is_software else "hardware")
            try:
                self._model = GpuModel(checkpoint, self._device)
            except BaseException:
                self._device.close()
                raise
        except DeviceError as error:
            raise DeviceUnavailable(
                f"The model cannot run on the GPU: {error}; --target cpu runs it on the CPU."
            ) from error
        checkpoint.release_pages()
        self.encoder: Graph = self._model.encoder
        self.decoder: Graph = self._model.decoder

    def is_lost(self) -> bool:
        """Whether the device gives no memory any more, not even the least there is."""
        from kernels.webgpu.device import DeviceError

        try:
            self._device.buffer(4).close()
        except DeviceError:
            return True
        return False

    def device_bytes(self) -> int:
        return self._device.held_bytes

    def close(self) -> None:
        self._model.close()
        self._device.close()
