"""The WASI-NN calls: guest pointers in, error numbers out. Knows no model and no GPU.

The core ABI, module `wasi_ephemeral_nn`: the six functions of the witx file and WasmEdge's `load_by_name_with_config`,
`unload` and `finalize_execution_context`. Every argument is a u32, every result an `Errno`.
"""

import json
import logging
import math
import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from wasmtime import FuncType, Linker, ValType

from service.guest.memory import GuestMemory, OutOfBounds

logger = logging.getLogger(__name__)

MODULE = "wasi_ephemeral_nn"
U32_MAX = 0xFFFF_FFFF

MAX_GRAPHS = 64  # loaded at the same time by one instance
MAX_CONTEXTS = 16  # alive at the same time in one instance: each may own a KV cache
MAX_INPUT_BYTES = 256 * 2**20  # total of one instance's live inputs, 256 MiB: over an hour of PCM
MAX_RANK = 8  # dimensions of a tensor
MAX_NAME_BYTES = 4096
MAX_CONFIG_BYTES = 65_536


class Errno(IntEnum):
    """WASI-NN's error numbers."""

    SUCCESS = 0
    INVALID_ARGUMENT = 1
    INVALID_ENCODING = 2
    MISSING_MEMORY = 3
    BUSY = 4
    RUNTIME_ERROR = 5
    TOO_LARGE = 7
    NOT_FOUND = 8


# WASI-NN's element types by number.
DTYPES = dict(enumerate(map(np.dtype, (np.float16, np.float32, np.float64, np.uint8, np.int32, np.int64))))
# openvino, onnx, tensorflow, pytorch, tensorflowlite, autodetect; WasmEdge's ggml, burn, whisper
ENCODINGS = frozenset({0, 1, 2, 3, 4, 5, 6, 8, 9})

_TENSOR = struct.Struct("<IIBxxxII")  # dims pointer, dims length, type, data pointer, data length in bytes


class ExecutionContext(Protocol):
    """One use of a graph: its inputs, caches and latest outputs."""

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        """Set input `index`; the callee keeps the array. ValueError: wrong index, shape or dtype."""

    def compute(self) -> None:
        """Compute new outputs. Raises ValueError while an input is missing."""

    def get_output(self, index: int) -> NDArray[Any]:
        """Output `index` of the latest compute, C-contiguous. Raises ValueError before it, or for an unknown index."""

    def close(self) -> None:
        """Free the context's resources. Idempotent."""


class Graph(Protocol):
    """A graph that a guest loads by name; it belongs to the service and outlives every guest."""

    def init_execution_context(self, peers: Mapping[int, ExecutionContext]) -> ExecutionContext:
        """A new context. `peers`: the instance's live contexts by handle, a view that follows their changes."""


class WasiNnError(Exception):
    """A call rejected with an error number; the text says why, for the log."""

    def __init__(self, errno: Errno, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno


def _refuse(reason: str) -> WasiNnError:
    return WasiNnError(Errno.INVALID_ARGUMENT, reason)


class WasiNn:
    """The graphs and contexts of one guest instance, freed with it.

    Handles count up from 0, separately for graphs and contexts, and are never reused. An instance runs in one thread at
    a time, so no locks are needed, and a compute blocks no other instance.
    """

    def __init__(self, graphs: Mapping[str, Graph], *, max_input_bytes: int = MAX_INPUT_BYTES) -> None:
        """`graphs`: those this instance may load, by name. `max_input_bytes`: limit for all its live inputs."""
        self.last_error: str | None = None  # why the latest rejected call was rejected
        self._named = graphs
        self._max_input_bytes = max_input_bytes
        self._graphs: dict[int, Graph] = {}
        self._contexts: dict[int, ExecutionContext] = {}
        self._input_bytes: dict[int, dict[int, int]] = {}  # context → input index → bytes
        self._next_graph = 0
        self._next_context = 0

    def close(self) -> None:
        """Free every context. Later calls find no handle. Idempotent."""
        contexts, self._named = list(self._contexts.values()), {}
        self._graphs.clear()
        self._contexts.clear()
        self._input_bytes.clear()
        for context in contexts:
            try:
                context.close()
            except Exception:
                logger.exception("a context could not be closed")

    def call(self, name: str, memory: GuestMemory, *arguments: int) -> Errno:
        """Make the call `name` of `CALLS` with u32 `arguments`. Any failure becomes an error number."""
        try:
            CALLS[name](self, memory, *arguments)
            return Errno.SUCCESS
        except WasiNnError as error:
            errno, reason = error.errno, str(error)
        except (OutOfBounds, ValueError) as error:
            errno, reason = Errno.INVALID_ARGUMENT, str(error)
        except Exception as error:
            logger.exception("WASI-NN %s%r failed", name, arguments)
            errno, reason = Errno.RUNTIME_ERROR, f"{type(error).__name__}: {error}"
        self.last_error = f"{name}{arguments} → {errno.name.lower()}: {reason}"
        logger.debug("%s", self.last_error)
        return errno

    def load(self, memory: GuestMemory, builders: int, n_builders: int, encoding: int, _target: int, out: int) -> None:
        """Always rejected: models are registered with the service and loaded by name."""
        memory.span(builders, 8 * n_builders)
        memory.span(out, 4)
        if encoding not in ENCODINGS:
            raise WasiNnError(Errno.INVALID_ENCODING, f"there is no graph encoding {encoding}")
        raise _refuse("models cannot be loaded from a guest's bytes; load_by_name finds the service's models")

    def load_by_name(self, memory: GuestMemory, name: int, n_name: int, out: int) -> None:
        """A handle to a named graph, at `out`. Invalid UTF-8 is an invalid argument, an unknown name not found."""
        name_bytes = memory.span(name, n_name)
        memory.span(out, 4)
        if n_name > MAX_NAME_BYTES:
            raise WasiNnError(Errno.NOT_FOUND, f"no graph has a name of {n_name} bytes")
        text = str(name_bytes, "utf-8")
        graph = self._named.get(text)
        if graph is None:
            raise WasiNnError(Errno.NOT_FOUND, f"no graph is named {text!r}")
        if len(self._graphs) >= MAX_GRAPHS:
            raise WasiNnError(Errno.BUSY, f"{MAX_GRAPHS} graphs are loaded; unload one")
        handle, self._next_graph = self._next_graph, self._next_graph + 1
        self._graphs[handle] = graph
        memory.write_u32(out, handle)

    def load_by_name_with_config(
        self, memory: GuestMemory, name: int, n_name: int, config: int, n_config: int, out: int
    ) -> None:
        """As load_by_name. Graphs have no settings, so `config` is empty or an empty JSON object."""
        config_bytes = memory.span(config, n_config)
        if n_config > MAX_CONFIG_BYTES:
            raise _refuse(f"a config of {n_config} bytes")
        try:
            settings = json.loads(str(config_bytes, "utf-8")) if n_config else {}
        except RecursionError:
            raise _refuse("the config nests too deeply") from None
        if not isinstance(settings, dict):
            raise _refuse("the config isn't a JSON object")
        if settings:
            raise _refuse(f"the config has an unknown key {next(iter(settings))!r}")
        self.load_by_name(memory, name, n_name, out)

    def unload(self, _memory: GuestMemory, graph: int) -> None:
        """Forget a graph's handle. Contexts already made from it stay alive."""
        if self._graphs.pop(graph, None) is None:
            raise _refuse(f"no graph has the handle {graph}")

    def init_execution_context(self, memory: GuestMemory, graph: int, out: int) -> None:
        """A handle to a new context of a graph, at `out`."""
        memory.span(out, 4)
        found = self._graphs.get(graph)
        if found is None:
            raise _refuse(f"no graph has the handle {graph}")
        if len(self._contexts) >= MAX_CONTEXTS:
            raise WasiNnError(Errno.BUSY, f"{MAX_CONTEXTS} contexts are alive; finalize one")
        context = found.init_execution_context(MappingProxyType(self._contexts))
        handle, self._next_context = self._next_context, self._next_context + 1
        self._contexts[handle], self._input_bytes[handle] = context, {}
        memory.write_u32(out, handle)

    def set_input(self, memory: GuestMemory, context: int, index: int, tensor: int) -> None:
        """Copy the tensor described by the 20-byte record at `tensor` and give it to a context."""
        found = self._context(context)
        dims, rank, type_number, data, n_data = _TENSOR.unpack(memory.span(tensor, _TENSOR.size))
        if rank > MAX_RANK:
            raise _refuse(f"a tensor of {rank} dimensions")
        shape = memory.u32s(dims, rank)
        memory.span(data, n_data)
        dtype = DTYPES.get(type_number)
        if dtype is None:
            raise _refuse(f"there is no tensor type {type_number}")
        if math.prod(shape) * dtype.itemsize != n_data:
            raise _refuse(f"{shape} of {dtype} is {math.prod(shape) * dtype.itemsize} bytes, not {n_data}")
        held = self._input_bytes[context]
        total = sum(sum(sizes.values()) for sizes in self._input_bytes.values()) - held.get(index, 0) + n_data
        if total > self._max_input_bytes:
            raise WasiNnError(Errno.TOO_LARGE, f"inputs of {total} bytes, more than {self._max_input_bytes}")
        found.set_input(index, memory.copy(data, n_data).view(dtype).reshape(shape))
        held[index] = n_data

    def compute(self, _memory: GuestMemory, context: int) -> None:
        """Run a context on its inputs."""
        self._context(context).compute()

    def get_output(self, memory: GuestMemory, context: int, index: int, buffer: int, n_buffer: int, out: int) -> None:
        """Copy an output's bytes to `buffer` and their number to `out`.

        If `n_buffer` is too small, the buffer is unchanged, `out` gets the number of bytes needed, and the result is
        too_large.
        """
        found = self._context(context)
        target = memory.span(buffer, n_buffer)
        memory.span(out, 4)
        tensor = np.ascontiguousarray(found.get_output(index))
        if tensor.nbytes > n_buffer:
            memory.write_u32(out, tensor.nbytes)
            raise WasiNnError(Errno.TOO_LARGE, f"output {index} is {tensor.nbytes} bytes, the buffer {n_buffer}")
        target[: tensor.nbytes] = tensor.reshape(-1).view(np.uint8).data
        memory.write_u32(out, tensor.nbytes)

    def finalize_execution_context(self, _memory: GuestMemory, context: int) -> None:
        """Free a context and its handle."""
        found = self._context(context)
        del self._contexts[context], self._input_bytes[context]
        found.close()

    def _context(self, handle: int) -> ExecutionContext:
        found = self._contexts.get(handle)
        if found is None:
            raise _refuse(f"no context has the handle {handle}")
        return found


CALLS: Mapping[str, Callable[..., None]] = {
    "load": WasiNn.load,
    "load_by_name": WasiNn.load_by_name,
    "load_by_name_with_config": WasiNn.load_by_name_with_config,
    "unload": WasiNn.unload,
    "init_execution_context": WasiNn.init_execution_context,
    "set_input": WasiNn.set_input,
    "compute": WasiNn.compute,
    "get_output": WasiNn.get_output,
    "finalize_execution_context": WasiNn.finalize_execution_context,
}

Enter = Callable[[], tuple[WasiNn, GuestMemory | None] | None]


def define(linker: Linker, enter: Enter) -> None:
    """Define the calls on `linker`.

    Each call asks `enter` for the running instance's state and its memory (None if it has none: missing_memory). None
    instead of both means that the instance is being stopped: runtime_error.
    """
    i32 = ValType.i32()
    for name, method in CALLS.items():
        arity = method.__code__.co_argcount - 2  # without self and memory
        linker.define_func(MODULE, name, FuncType([i32] * arity, [i32]), partial(_answer, enter, name))


def _answer(enter: Enter, name: str, *arguments: int) -> int:
    entered = enter()
    if entered is None:
        return int(Errno.RUNTIME_ERROR)
    nn, memory = entered
    if memory is None:
        return int(Errno.MISSING_MEMORY)
    return int(nn.call(name, memory, *(argument & U32_MAX for argument in arguments)))
