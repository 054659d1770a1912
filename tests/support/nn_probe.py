"""A small WebAssembly guest that makes every WASI-NN call on command, graphs for it to use, and their fixtures."""

import ctypes
import functools
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from wasmtime import Engine, Func, Linker, Memory, Module, Store

from service.guest import wasi_nn
from service.guest.memory import GuestMemory
from service.guest.wasi_nn import DTYPES, Errno, ExecutionContext, WasiNn

PAGE = 65_536
U32_MAX = 0xFFFF_FFFF
FUNCTIONS = tuple(wasi_nn.CALLS)
# A guest that makes every call from its own code, with arguments given from outside.
PROBE = """
(module
  (import "wasi_ephemeral_nn" "load" (func $load (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "load_by_name" (func $load_by_name (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "load_by_name_with_config" (func $config (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "unload" (func $unload (param i32) (result i32)))
  (import "wasi_ephemeral_nn" "init_execution_context" (func $init (param i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "set_input" (func $set_input (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "compute" (func $compute (param i32) (result i32)))
  (import "wasi_ephemeral_nn" "get_output" (func $get_output (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "finalize_execution_context" (func $finalize (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "load") (param i32 i32 i32 i32 i32) (result i32)
    (call $load (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)))
  (func (export "load_by_name") (param i32 i32 i32) (result i32)
    (call $load_by_name (local.get 0) (local.get 1) (local.get 2)))
  (func (export "load_by_name_with_config") (param i32 i32 i32 i32 i32) (result i32)
    (call $config (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)))
  (func (export "unload") (param i32) (result i32) (call $unload (local.get 0)))
  (func (export "init_execution_context") (param i32 i32) (result i32) (call $init (local.get 0) (local.get 1)))
  (func (export "set_input") (param i32 i32 i32) (result i32)
    (call $set_input (local.get 0) (local.get 1) (local.get 2)))
  (func (export "compute") (param i32) (result i32) (call $compute (local.get 0)))
  (func (export "get_output") (param i32 i32 i32 i32 i32) (result i32)
    (call $get_output (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)))
  (func (export "finalize_execution_context") (param i32) (result i32) (call $finalize (local.get 0))))
"""


class DoublingContext:
    """Input 0 → output 0, twice as large, plus the output of the peer whose handle input 1 gives."""

    def __init__(self, peers: Mapping[int, ExecutionContext]) -> None:
        self.peers = peers
        self.inputs: dict[int, NDArray[Any]] = {}
        self.output: NDArray[Any] | None = None
        self.closed = False

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        if index > 1:
            raise ValueError(f"no input {index}")
        self.inputs[index] = tensor

    def compute(self) -> None:
        if 0 not in self.inputs:
            raise ValueError("input 0 is not set")
        self.output = self.inputs[0] * self.inputs[0].dtype.type(2)
        if 1 in self.inputs:
            self.output = self.output + self.peers[int(self.inputs[1][0])].get_output(0)

    def get_output(self, index: int) -> NDArray[Any]:
        if index != 0 or self.output is None:
            raise ValueError(f"no output {index}")
        return self.output

    def close(self) -> None:
        self.closed = True


class Doubling:
    """A graph of DoublingContexts, all of which it remembers."""

    def __init__(self) -> None:
        self.contexts: list[DoublingContext] = []

    def init_execution_context(self, peers: Mapping[int, ExecutionContext]) -> DoublingContext:
        self.contexts.append(DoublingContext(peers))
        return self.contexts[-1]


class BrokenContext(DoublingContext):
    """Fails in every call, below the shim."""

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        raise RuntimeError("the device is lost")

    def compute(self) -> None:
        raise MemoryError

    def get_output(self, index: int) -> NDArray[Any]:
        raise KeyError(index)

    def close(self) -> None:
        raise OSError("cannot be closed")


class Broken:
    """A graph whose contexts fail."""

    def init_execution_context(self, peers: Mapping[int, ExecutionContext]) -> BrokenContext:
        return BrokenContext(peers)


class Unloadable:
    """A graph that cannot make contexts."""

    def init_execution_context(self, peers: Mapping[int, ExecutionContext]) -> DoublingContext:
        raise RuntimeError("no device")


class Probe:
    """The probing guest's instance: its memory, and its calls as (function name, u32s) → error number."""

    def __init__(self, module: Module, nn: WasiNn) -> None:
        self.nn: WasiNn | None = nn
        self.has_memory = True
        linker = Linker(probe_engine())
        wasi_nn.define(linker, self._enter)
        self.store = Store(probe_engine())
        exports = linker.instantiate(self.store, module).exports(self.store)
        memory = exports["memory"]
        assert isinstance(memory, Memory)
        self._memory = memory
        self._functions = {name: exports[name] for name in FUNCTIONS}
        linker.close()

    def _enter(self) -> tuple[WasiNn, GuestMemory | None] | None:
        if self.nn is None:
            return None
        return self.nn, GuestMemory(self.view()) if self.has_memory else None

    def view(self) -> memoryview:
        address = ctypes.addressof(self._memory.data_ptr(self.store).contents)
        return memoryview((ctypes.c_ubyte * PAGE).from_address(address)).cast("B")

    def call(self, name: str, *arguments: int) -> int:
        function = self._functions[name]
        assert isinstance(function, Func)
        signed = (argument - 2**32 if argument >= 2**31 else argument for argument in arguments)
        errno = function(self.store, *signed)
        assert isinstance(errno, int)
        return errno

    def put(self, pointer: int, data: bytes) -> int:
        self.view()[pointer : pointer + len(data)] = data
        return len(data)

    def u32(self, pointer: int) -> int:
        value: int = struct.unpack_from("<I", self.view(), pointer)[0]
        return value

    def load(self, name: str) -> int:
        """Load a graph and return its handle."""
        assert self.call("load_by_name", 0, self.put(0, name.encode()), 8000) == Errno.SUCCESS
        return self.u32(8000)

    def context(self, graph: int) -> int:
        """Make a context and return its handle."""
        assert self.call("init_execution_context", graph, 8000) == Errno.SUCCESS
        return self.u32(8000)

    def tensor(self, array: NDArray[Any], *, record: int = 1000, dims: int = 1100, data: int = 2000) -> int:
        """Lay `array` into memory and return the pointer to its record."""
        number = next(number for number, dtype in DTYPES.items() if dtype == array.dtype)
        self.put(dims, struct.pack(f"<{array.ndim}I", *array.shape))
        self.put(record, struct.pack("<IIBxxxII", dims, array.ndim, number, data, array.nbytes))
        self.put(data, array.tobytes())
        return record

    def output(self, context: int, dtype: np.dtype[Any], index: int = 0) -> NDArray[Any]:
        """Read an output through a buffer of 4 KiB."""
        assert self.call("get_output", context, index, 4096, 4096, 8200) == Errno.SUCCESS
        return np.frombuffer(bytes(self.view()[4096 : 4096 + self.u32(8200)]), dtype)


@functools.cache
def probe_engine() -> Engine:
    """Made late: pytest takes the signals that report a crash when it starts, and wasmtime needs them for its traps."""
    return Engine()


X = np.array([[1.5, -2.0, 3.25]], np.float32)


def assert_works(probe: Probe) -> None:
    """The instance still loads, computes and reads as if nothing had happened."""
    context = probe.context(probe.load("doubling"))
    assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS
    np.testing.assert_array_equal(probe.output(context, X.dtype), 2 * X.ravel())
    assert probe.call("finalize_execution_context", context) == Errno.SUCCESS


@pytest.fixture(scope="module")
def probe_module() -> Module:
    return Module(probe_engine(), PROBE)


@pytest.fixture
def doubling() -> Doubling:
    return Doubling()


@pytest.fixture
def probe(probe_module: Module, doubling: Doubling) -> Iterator[Probe]:
    nn = WasiNn({"doubling": doubling, "broken": Broken(), "unloadable": Unloadable()}, max_input_bytes=16_384)
    yield Probe(probe_module, nn)
    nn.close()
