"""The loaded model: tokenizer, WASI-NN graphs, and device memory."""

import gc
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.checkpoints.common import NoTokenizer
from kernels.checkpoints.load import Checkpoint, CheckpointError, load_checkpoint
from service.errors import DeviceLost, DeviceUnavailable, ModelError, TokenizerMissing
from service.guest.wasi_nn import Graph
from service.models.graphs import TokenizerGraph, ZlibGraph
from service.models.languages import language_name
from service.models.names import ModelSpec, check_files
from service.models.places import tokenizer_for
from service.models.residence import Residence
from service.models.room import Limits, Occupant, Room
from service.models.sizes import loaded_bytes
from service.models.target import Target, choose_target, wanted_target
from service.models.tokenizer import Tokenizer
from service.settings import PRELOAD_VARIABLE

if TYPE_CHECKING:  # imported for the target in use only
    from kernels.cpu.model import CpuModel

log = logging.getLogger("wisp")

REOPEN_S = 5.0  # minimum time between attempts to open a failing GPU


@dataclass(frozen=True, eq=False)
class _Loaded:
    """Kernels, and the model's graphs that a guest may load by name."""

    kernels: "CpuModel | _GpuKernels"
    graphs: Mapping[str, Graph]


class Model:
    """A model and the graphs that a guest may load by name. close() is idempotent; no graph computes after it."""

    def __init__(
        self,
        read: "ReadModel",
        *,
        workers: int = 1,
        room: Room | None = None,
        observe: Callable[[str, float | None], None] = lambda name, seconds: None,
    ) -> None:
        """Not loaded yet: its first user loads it into `room`, for up to `workers` transcriptions at the same time.

        `observe`: called with the name and the seconds that loading took, or with None after an unload.
        """
        checkpoint = read.checkpoint
        self.name = read.spec.name
        self.language = read.spec.language  # Whisper's code, if the preload string has one
        self.dims, self.tokenizer, self.target = checkpoint.dims, read.tokenizer, read.target
        self.num_beams, self.condition_on_prev_tokens = checkpoint.num_beams, checkpoint.condition_on_prev_tokens
        self.device_failures = 0  # GPU losses and failed openings in a row, without a success in between
        self._reopen_at = -math.inf  # by time.monotonic()
        self._graphs: dict[str, Graph] = {
            f"{self.name}/tokenizer": TokenizerGraph(self.tokenizer),
            f"{self.name}/zlib": ZlibGraph(),
        }
        self._spec, self._may_fall_back, self._observe = read.spec, read.may_fall_back, observe
        self._checkpoint: Checkpoint | None = checkpoint  # until the first load; the kernels keep what they need of it
        self._has_loaded = False
        self._loaded = Residence(load=self._load, unload=self._unload)
        self.room = room or Room(Limits(sys.maxsize, sys.maxsize))
        n_bytes = loaded_bytes(self.dims, workers)
        self.occupant = Occupant(self.name, n_bytes, lambda: self.is_loaded, self.unload)

    def _load(self) -> _Loaded:
        started = time.monotonic()
        if started < self._reopen_at:
            raise DeviceLost(self._reopen_at - started)
        try:
            checkpoint, self._checkpoint = self._checkpoint or read_checkpoint(self._spec), None
            kernels, self.target = _kernels(checkpoint, self.target, self._may_fall_back)
            self._may_fall_back = False
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
                log.warning("the GPU's driver is software and slower than the CPU target: use --target cpu here")
        self._has_loaded = True
        self._observe(self.name, seconds)
        own = {f"{self.name}/encoder": kernels.encoder, f"{self.name}/decoder": kernels.decoder}
        return _Loaded(kernels, own | self._graphs)

    def _unload(self, loaded: _Loaded) -> None:
        loaded.kernels.close()
        self._observe(self.name, None)

    @property
    def is_loaded(self) -> bool:
        """Whether it is in memory, ready to compute."""
        return self._loaded.thing is not None

    @contextmanager
    def in_use(self, length: int = 0, check: Callable[[], None] = lambda: None) -> Iterator[Mapping[str, Graph]]:
        """A block in which the model is loaded, with its graphs. Waits for room in memory, see Room.using().

        Raises ModelTooLarge, ModelError if it cannot be loaded, and DeviceLost if there is no device for it or the
        device was lost during the block. The next block then gets another device.
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
                    log.error("the GPU is lost; the next request opens it again")
                raise DeviceLost from error
            if self._loaded.thing is loaded:  # else this success says nothing about the next device
                self.device_failures = 0
                if held_bytes := self.device_bytes():
                    self.room.measured(self.occupant, held_bytes)

    def load(self) -> None:
        """Load it, if it isn't. Raises as in_use() does."""
        with self.in_use():
            pass

    def unload(self) -> bool:
        """Free its memory, on the device and off it; False if it is in use or not loaded."""
        is_unloaded = self._loaded.unload()
        if is_unloaded:
            if self.target.name == "gpu":
                gc.collect()  # wgpu's objects refer to each other; until collected, the driver keeps MBs per device
            log.info("model %s unloaded", self.name)
        return is_unloaded

    @property
    def graphs(self) -> Mapping[str, Graph]:
        """NAME/encoder and NAME/decoder while loaded, NAME/tokenizer."""
        loaded = self._loaded.thing
        return loaded.graphs if loaded is not None else self._graphs

    def device_bytes(self) -> int:
        """GPU memory in use; 0 on the CPU."""
        loaded = self._loaded.thing
        return loaded.kernels.device_bytes() if loaded is not None and isinstance(loaded.kernels, _GpuKernels) else 0

    def close(self) -> None:
        """Free the model's device memory."""
        self._loaded.close()


@dataclass(frozen=True)
class ReadModel:
    """A model whose files have been read and checked, and its target; nothing is computed yet."""

    spec: ModelSpec
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    target: Target
    may_fall_back: bool  # to the CPU, because Wisp chose the GPU, not the user


def read_model(spec: ModelSpec, target: str) -> ReadModel:
    """Read the checkpoint and choose the target as wanted_target() says.

    Raises ModelError (files missing, broken, of another model, or without the preload string's language) or
    DeviceUnavailable, each with what to do.
    """
    asked = wanted_target(spec, target)
    chosen = choose_target(asked)
    checkpoint = read_checkpoint(spec)
    tokenizer = tokenizer_of(checkpoint)
    if spec.language is not None and not tokenizer.speaks(spec.language):
        raise ModelError(
            f"The model '{spec.name}' does not know {language_name(spec.language).capitalize()} ('{spec.language}'), "
            f"the language in {PRELOAD_VARIABLE}: remove it there, or use another model."
        )
    return ReadModel(spec, checkpoint, tokenizer, chosen, may_fall_back=asked == "auto")


def read_checkpoint(spec: ModelSpec) -> Checkpoint:
    """Read and check the files that `spec` names. Raises ModelError."""
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
        raise TokenizerMissing(
            f"{trouble}: {error}. Any model of that kind that is found here lends its own: "
            f"wisp models pull {'tiny' if error.is_multilingual else 'tiny.en'} fetches one."
        ) from error
    except CheckpointError as error:
        advice = "Fetch its files again, or name" if error.may_be_damage else "Name"
        raise ModelError(f"{trouble}: {error}. {advice} another with --model.") from error


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """Its tokenizer.json, read and checked. Raises ModelError."""
    return Tokenizer(checkpoint.tokenizer_json, checkpoint.dims.n_vocab, checkpoint.is_multilingual)


def _kernels(checkpoint: Checkpoint, target: Target, may_fall_back: bool) -> "tuple[CpuModel | _GpuKernels, Target]":
    """The checkpoint ready to compute on `target`, or on the CPU if the GPU fails and `may_fall_back`."""
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
    """A model on its own device, closed with it."""

    def __init__(self, checkpoint: Checkpoint, target: Target) -> None:
        """Use an adapter of the kind that `target` was chosen for: a software adapter never replaces a lost GPU.

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
                f"The model cannot run on the GPU: {error}; use --target cpu to run it on the CPU."
            ) from error
        checkpoint.release_pages()
        self.encoder: Graph = self._model.encoder
        self.decoder: Graph = self._model.decoder

    def is_lost(self) -> bool:
        """Whether the device no longer allocates even the smallest buffer."""
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
