"""The loaded model and the target it runs on: its tokenizer, its WASI-NN graphs, what it holds on the device."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoint import Checkpoint, CheckpointError, Dimensions, load_checkpoint
from service.errors import DeviceUnavailable, ModelError
from service.graphs import SpeechGraph, TokenizerGraph
from service.model_files import ModelSpec, TargetName, find_model, parse_preload
from service.tokenizer import Tokenizer
from service.wasi_nn import Graph

__all__ = ["Model", "ModelSpec", "Target", "choose_target", "find_model", "load_model", "parse_preload"]

log = logging.getLogger("wisp")


@dataclass(frozen=True)
class Target:
    """Where kernels run, and why there, in one sentence."""

    name: Literal["gpu", "cpu"]
    reason: str


class Kernels(Protocol):
    """A checkpoint made ready to compute, by either target."""

    @property
    def encoder(self) -> Graph: ...

    @property
    def decoder(self) -> Graph: ...

    def close(self) -> None: ...


def choose_target(asked: str) -> Target:
    """auto → the GPU if an adapter is hardware, else the CPU; gpu and cpu → as asked. `cpu` never loads wgpu.

    Raises DeviceUnavailable for `gpu` without an adapter.
    """
    if asked not in get_args(TargetName):
        raise DeviceUnavailable(f"The target '{asked}' is not one of {', '.join(get_args(TargetName))}.")
    if asked == "cpu":
        return Target("cpu", "The CPU was asked for.")
    try:
        from kernels.device import list_adapters

        adapters = list_adapters()
    except Exception as error:  # wgpu without its library, a Vulkan loader that fails: there is no adapter either way
        adapters, trouble = [], f" ({error})"
    else:
        trouble = ""
    if asked == "gpu":
        if not adapters:
            raise DeviceUnavailable(
                f"The target gpu was asked for, but no WebGPU adapter was found{trouble}: install a Vulkan driver "
                "(a software one is in mesa-vulkan-drivers, with libvulkan1), or use --target cpu."
            )
        return Target("gpu", f"The GPU was asked for; the best adapter is {adapters[0].name} ({adapters[0].kind}).")
    hardware = [adapter for adapter in adapters if not adapter.is_software]
    if hardware:
        return Target("gpu", f"There is a hardware adapter: {hardware[0].name} ({hardware[0].kind}).")
    if adapters:
        return Target("cpu", f"The only WebGPU adapter is software ({adapters[0].name}), which the CPU target outruns.")
    return Target("cpu", f"No WebGPU adapter was found{trouble}.")


class Model:
    """A loaded model and the graphs a guest may load by name. close() is idempotent; no graph computes after it."""

    def __init__(
        self, spec: ModelSpec, dims: Dimensions, tokenizer: Tokenizer, target: Target, kernels: Kernels
    ) -> None:
        self.name = spec.name
        self.language = spec.language  # Whisper's code, where the preload string says one
        self.dims = dims
        self.tokenizer = tokenizer
        self.target = target
        self._kernels: Kernels | None = kernels
        self._graphs: dict[str, Graph] = {
            f"{self.name}/encoder": kernels.encoder,
            f"{self.name}/decoder": kernels.decoder,
            f"{self.name}/tokenizer": TokenizerGraph(tokenizer),
        }

    @property
    def graphs(self) -> Mapping[str, Graph]:
        """NAME/encoder, NAME/decoder, NAME/tokenizer, and NAME once `add_speech_graph` has been called."""
        return self._graphs

    def add_speech_graph(self, transcribe: Callable[[NDArray[np.float32]], str]) -> None:
        """Give guests the graph NAME: `transcribe` turns (n_samples,) f32 of 16 kHz PCM into text."""
        self._graphs[self.name] = SpeechGraph(transcribe)

    def close(self) -> None:
        """Free what the model holds on the device."""
        if self._kernels is not None:
            self._kernels.close()
            self._kernels = None


@dataclass(frozen=True)
class ReadModel:
    """A model whose files have been read and found whole, and the target it will run on; nothing is computed yet."""

    spec: ModelSpec
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    target: Target

    def make_ready(self) -> Model:
        """Prepare the kernels: seconds on some devices. Raises DeviceUnavailable."""
        kernels = _GpuKernels(self.checkpoint) if self.target.name == "gpu" else _cpu_kernels(self.checkpoint)
        log.info("model %s on the %s target. %s", self.spec.name, self.target.name, self.target.reason)
        return Model(self.spec, self.checkpoint.dims, self.tokenizer, self.target, kernels)


def read_model(spec: ModelSpec, target: str = "auto") -> ReadModel:
    """Read the checkpoint and choose the target (the spec's own goes before `target`).

    Raises ModelError (files missing, broken, of another model) or DeviceUnavailable, each with what to do.
    """
    chosen = choose_target(spec.target or target)
    try:
        checkpoint = load_checkpoint(spec.weights, config=spec.config, tokenizer=spec.tokenizer)
    except CheckpointError as error:
        raise ModelError(
            f"The model '{spec.name}' cannot be loaded: {error}. Fetch its files again, or name another with --model."
        ) from error
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.dims.n_vocab, checkpoint.is_multilingual)
    return ReadModel(spec, checkpoint, tokenizer, chosen)


def load_model(spec: ModelSpec, target: str = "auto") -> Model:
    """A model from its files to its graphs, in one call. Raises as its two steps do."""
    return read_model(spec, target).make_ready()


def _cpu_kernels(checkpoint: Checkpoint) -> Kernels:
    from kernels.cpu import CpuModel

    return CpuModel(checkpoint)


class _GpuKernels:
    """A model on a device of its own, closed with it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        from kernels.whisper import GpuModel

        from kernels.device import DeviceError, open_device

        try:
            self._device = open_device()
            try:
                self._model = GpuModel(checkpoint, self._device)
            except BaseException:
                self._device.close()
                raise
        except DeviceError as error:
            raise DeviceUnavailable(f"The model cannot run on the GPU: {error}. Use --target cpu.") from error
        self.encoder: Graph = self._model.encoder
        self.decoder: Graph = self._model.decoder

    def close(self) -> None:
        self._model.close()
        self._device.close()
