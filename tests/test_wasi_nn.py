"""The WASI-NN calls, made by a small WebAssembly guest with good, wrong and hostile arguments."""

import ctypes
import itertools
import logging
import random
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from wasmtime import Engine, Func, Linker, Memory, Module, Store

from service import wasi_nn
from service.guest_memory import GuestMemory
from service.wasi_nn import DTYPES, MAX_CONTEXTS, MAX_GRAPHS, MAX_RANK, Errno, ExecutionContext, WasiNn

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
    """Fails below the shim in every call."""

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
        linker = Linker(module_engine)
        wasi_nn.define(linker, self._enter)
        self.store = Store(module_engine)
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


module_engine = Engine()
X = np.array([[1.5, -2.0, 3.25]], np.float32)


@pytest.fixture(scope="module")
def module() -> Module:
    return Module(module_engine, PROBE)


@pytest.fixture
def doubling() -> Doubling:
    return Doubling()


@pytest.fixture
def probe(module: Module, doubling: Doubling) -> Iterator[Probe]:
    nn = WasiNn({"doubling": doubling, "broken": Broken(), "unloadable": Unloadable()}, max_input_bytes=16_384)
    yield Probe(module, nn)
    nn.close()


def assert_works(probe: Probe) -> None:
    """The instance still loads, computes and reads as if nothing had happened."""
    context = probe.context(probe.load("doubling"))
    assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS
    np.testing.assert_array_equal(probe.output(context, X.dtype), 2 * X.ravel())
    assert probe.call("finalize_execution_context", context) == Errno.SUCCESS


def test_first_handles_are_zero_and_outputs_have_the_stated_size(probe: Probe) -> None:
    assert probe.load("doubling") == 0
    assert probe.context(0) == 0
    assert probe.call("set_input", 0, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("compute", 0) == Errno.SUCCESS
    assert probe.call("get_output", 0, 0, 4096, 4096, 8200) == Errno.SUCCESS
    assert probe.u32(8200) == X.nbytes
    np.testing.assert_array_equal(np.frombuffer(probe.view(), np.float32, 3, 4096), 2 * X.ravel())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_tensor_type_arrives_and_returns(probe: Probe, doubling: Doubling, dtype: np.dtype[Any]) -> None:
    x = np.arange(6, dtype=dtype).reshape(1, 2, 3)
    context = probe.context(probe.load("doubling"))
    assert probe.call("set_input", context, 0, probe.tensor(x)) == Errno.SUCCESS
    seen = doubling.contexts[0].inputs[0]
    assert (seen.dtype, seen.shape) == (x.dtype, x.shape)
    assert probe.call("compute", context) == Errno.SUCCESS
    np.testing.assert_array_equal(probe.output(context, dtype), (2 * x).ravel())


def test_an_input_is_a_private_copy(probe: Probe, doubling: Doubling) -> None:
    context = probe.context(probe.load("doubling"))
    assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.SUCCESS
    probe.put(2000, bytes(X.nbytes))
    assert probe.call("compute", context) == Errno.SUCCESS
    np.testing.assert_array_equal(probe.output(context, X.dtype), 2 * X.ravel())


def test_pointers_need_no_alignment(probe: Probe) -> None:
    context = probe.context(probe.load("doubling"))
    record = probe.tensor(X, record=1001, dims=1103, data=2001)
    assert probe.call("set_input", context, 0, record) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS
    assert probe.call("get_output", context, 0, 4099, 4096, 8201) == Errno.SUCCESS
    assert probe.u32(8201) == X.nbytes
    np.testing.assert_array_equal(np.frombuffer(bytes(probe.view()[4099:4111]), np.float32), 2 * X.ravel())


def test_the_very_end_of_memory_can_be_used(probe: Probe) -> None:
    name = b"doubling"
    assert probe.call("load_by_name", PAGE - len(name), probe.put(PAGE - len(name), name), PAGE - 4) == Errno.SUCCESS
    context = probe.context(0)
    record = probe.tensor(X, data=PAGE - X.nbytes)
    assert probe.call("set_input", context, 0, record) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS
    assert probe.call("get_output", context, 0, PAGE - X.nbytes, X.nbytes, 8200) == Errno.SUCCESS


def test_nan_and_infinity_pass_through(probe: Probe) -> None:
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    context = probe.context(probe.load("doubling"))
    assert probe.call("set_input", context, 0, probe.tensor(x)) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS
    np.testing.assert_array_equal(probe.output(context, x.dtype), x)


def test_empty_and_rank_0_tensors(probe: Probe, doubling: Doubling) -> None:
    context = probe.context(probe.load("doubling"))
    for x in (np.zeros((0,), np.int32), np.zeros((2, 0), np.float16), np.array(1.5, np.float64)):
        assert probe.call("set_input", context, 0, probe.tensor(x)) == Errno.SUCCESS
        assert doubling.contexts[0].inputs[0].shape == x.shape
        assert probe.call("compute", context) == Errno.SUCCESS
        assert probe.output(context, x.dtype).tolist() == (2 * x).ravel().tolist()


def test_a_used_context_gives_fresh_outputs(probe: Probe) -> None:
    context = probe.context(probe.load("doubling"))
    for x in (X, X + 1, np.zeros((2, 2), np.float32)):
        assert probe.call("set_input", context, 0, probe.tensor(x)) == Errno.SUCCESS
        assert probe.call("compute", context) == Errno.SUCCESS
        np.testing.assert_array_equal(probe.output(context, x.dtype), 2 * x.ravel())


def test_a_context_finds_its_peers_by_handle(probe: Probe) -> None:
    graph = probe.load("doubling")
    first, second, later = probe.context(graph), probe.context(graph), probe.context(graph)
    assert probe.call("set_input", later, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("compute", later) == Errno.SUCCESS
    assert probe.call("set_input", second, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("set_input", second, 1, probe.tensor(np.array([later], np.int32))) == Errno.SUCCESS
    assert probe.call("compute", second) == Errno.SUCCESS
    np.testing.assert_array_equal(probe.output(second, X.dtype), 4 * X.ravel())
    assert first == 0


BAD_POINTERS = (PAGE, PAGE - 3, 2**31, U32_MAX - 3, U32_MAX)


@pytest.mark.parametrize("bad", BAD_POINTERS)
def test_every_pointer_out_of_bounds_is_an_invalid_argument(probe: Probe, doubling: Doubling, bad: int) -> None:
    graph, context = probe.load("doubling"), probe.context(0)
    name = probe.put(8, b"doubling")
    probe.put(16, b"{}")
    record = probe.tensor(X)
    calls: list[tuple[str, tuple[int, ...]]] = [
        ("load", (bad, 1, 8, 0, 8000)),
        ("load", (0, 1, 8, 0, bad)),
        ("load_by_name", (bad, name, 8000)),
        ("load_by_name", (8, bad, 8000)),
        ("load_by_name", (8, name, bad)),
        ("load_by_name_with_config", (bad, name, 16, 2, 8000)),
        ("load_by_name_with_config", (8, bad, 16, 2, 8000)),
        ("load_by_name_with_config", (8, name, bad, 8, 8000)),
        ("load_by_name_with_config", (8, name, 16, bad, 8000)),
        ("load_by_name_with_config", (8, name, 16, 2, bad)),
        ("init_execution_context", (graph, bad)),
        ("set_input", (context, 0, bad)),
    ]
    for call, arguments in calls:
        assert probe.call(call, *arguments) == Errno.INVALID_ARGUMENT, (call, arguments)
    for field in (0, 12, 16):  # dims pointer, data pointer, data length
        probe.tensor(X)
        probe.put(record + field, struct.pack("<I", bad))
        assert probe.call("set_input", context, 0, record) == Errno.INVALID_ARGUMENT, field
    assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS
    assert probe.call("get_output", context, 0, bad, 12, 8200) == Errno.INVALID_ARGUMENT
    assert probe.call("get_output", context, 0, 4096, bad, 8200) == Errno.INVALID_ARGUMENT
    assert probe.call("get_output", context, 0, 4096, 4096, bad) == Errno.INVALID_ARGUMENT
    assert (probe.load("doubling"), probe.context(0)) == (1, 1), "a refused call gave a handle away"
    assert len(doubling.contexts) == 2


@pytest.mark.parametrize(
    ("rank", "dims", "n_data"),
    [
        (1, (4,), 12),  # too few bytes
        (1, (2,), 12),  # too many
        (2, (0x10000, 0x10000), 0),  # 2^32 elements wrap around to 0
        (2, (0x8000_0000, 2), 0),
        (3, (U32_MAX, U32_MAX, U32_MAX), 4),
        (1, (0x4000_0000,), 0),  # 4 bytes each: 2^32 wraps around to 0
        (1, (3,), 11),  # not whole elements
        (0, (), 12),
        (MAX_RANK + 1, (1,) * (MAX_RANK + 1), 4),
        (U32_MAX, (3,), 12),
        (0x4000_0000, (3,), 12),  # dims bytes wrap around to 0
        (3, (U32_MAX, 0, U32_MAX), 0),  # empty, yet no array can have that shape
    ],
)
def test_dimensions_must_fit_the_data(probe: Probe, rank: int, dims: tuple[int, ...], n_data: int) -> None:
    context = probe.context(probe.load("doubling"))
    probe.put(1100, struct.pack(f"<{len(dims)}I", *dims))
    probe.put(1000, struct.pack("<IIBxxxII", 1100, rank, 1, 2000, n_data))
    assert probe.call("set_input", context, 0, 1000) == Errno.INVALID_ARGUMENT
    assert_works(probe)


@pytest.mark.parametrize("number", [6, 7, 255])
def test_an_unknown_tensor_type_is_an_invalid_argument(probe: Probe, number: int) -> None:
    context = probe.context(probe.load("doubling"))
    probe.put(probe.tensor(X) + 8, bytes([number]))
    assert probe.call("set_input", context, 0, 1000) == Errno.INVALID_ARGUMENT


def test_only_one_byte_of_the_tensor_type_is_read(probe: Probe) -> None:
    context = probe.context(probe.load("doubling"))
    probe.put(probe.tensor(X) + 9, b"\xff\xff\xff")
    assert probe.call("set_input", context, 0, 1000) == Errno.SUCCESS


def test_load_refuses_bytes_and_unknown_encodings(probe: Probe) -> None:
    probe.put(0, struct.pack("<II", 100, 5) + bytes(92) + b"magic")
    for target in (0, 1, 2, 3, 4, U32_MAX):
        for encoding in (0, 1, 2, 3, 4, 5, 6, 8, 9):
            assert probe.call("load", 0, 1, encoding, target, 8000) == Errno.INVALID_ARGUMENT
        for encoding in (7, 10, U32_MAX):
            assert probe.call("load", 0, 1, encoding, target, 8000) == Errno.INVALID_ENCODING
    assert probe.call("load", 0, U32_MAX, 8, 0, 8000) == Errno.INVALID_ARGUMENT
    assert probe.call("load", 0, 0x2000_0000, 8, 0, 8000) == Errno.INVALID_ARGUMENT  # 8 bytes each wrap around to 0
    assert probe.load("doubling") == 0


def test_names(probe: Probe) -> None:
    for name in (b"", b"doublin", b"doubling\0", b"Doubling", "größer".encode()):
        assert probe.call("load_by_name", 0, probe.put(0, name), 8000) == Errno.NOT_FOUND, name
    assert probe.call("load_by_name", 0, 60_000, 8000) == Errno.NOT_FOUND
    assert probe.call("load_by_name", 0, probe.put(0, b"\xff\xfe"), 8000) == Errno.INVALID_ARGUMENT


@pytest.mark.parametrize("config", [b"", b"{}", b" { } "])
def test_a_config_without_keys_loads(probe: Probe, config: bytes) -> None:
    name, n_config = probe.put(0, b"doubling"), probe.put(100, config)
    assert probe.call("load_by_name_with_config", 0, name, 100, n_config, 8000) == Errno.SUCCESS
    assert probe.context(probe.u32(8000)) == 0


@pytest.mark.parametrize(
    "config", [b"{", b"[]", b"null", b"1", b'"gpu"', b"\xff", b"{}{}", b'{"beam": 5}', b"[" * 30_000, b" "]
)
def test_any_other_config_is_an_invalid_argument(probe: Probe, config: bytes) -> None:
    name, n_config = probe.put(0, b"doubling"), probe.put(100, config)
    assert probe.call("load_by_name_with_config", 0, name, 100, n_config, 60_000) == Errno.INVALID_ARGUMENT
    assert probe.load("doubling") == 0


def test_a_config_for_an_unknown_name_is_not_found(probe: Probe) -> None:
    name = probe.put(0, b"nobody")
    assert probe.call("load_by_name_with_config", 0, name, 100, 0, 8000) == Errno.NOT_FOUND


@pytest.mark.parametrize("handle", [0, 1, 2**31, U32_MAX])
def test_unknown_handles_are_invalid_arguments(probe: Probe, handle: int) -> None:
    record = probe.tensor(X)
    assert probe.call("init_execution_context", handle, 8000) == Errno.INVALID_ARGUMENT
    assert probe.call("unload", handle) == Errno.INVALID_ARGUMENT
    assert probe.call("set_input", handle, 0, record) == Errno.INVALID_ARGUMENT
    assert probe.call("compute", handle) == Errno.INVALID_ARGUMENT
    assert probe.call("get_output", handle, 0, 4096, 4096, 8200) == Errno.INVALID_ARGUMENT
    assert probe.call("finalize_execution_context", handle) == Errno.INVALID_ARGUMENT


def test_handles_are_never_given_twice(probe: Probe) -> None:
    for expected in range(3 * MAX_GRAPHS):
        assert probe.load("doubling") == expected
        assert probe.context(expected) == expected
        assert probe.call("finalize_execution_context", expected) == Errno.SUCCESS
        assert probe.call("finalize_execution_context", expected) == Errno.INVALID_ARGUMENT
        assert probe.call("unload", expected) == Errno.SUCCESS
        assert probe.call("unload", expected) == Errno.INVALID_ARGUMENT


def test_nothing_works_on_a_finalized_context(probe: Probe, doubling: Doubling) -> None:
    context = probe.context(probe.load("doubling"))
    record = probe.tensor(X)
    assert probe.call("set_input", context, 0, record) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS
    assert probe.call("finalize_execution_context", context) == Errno.SUCCESS
    assert doubling.contexts[0].closed
    assert probe.call("set_input", context, 0, record) == Errno.INVALID_ARGUMENT
    assert probe.call("compute", context) == Errno.INVALID_ARGUMENT
    assert probe.call("get_output", context, 0, 4096, 4096, 8200) == Errno.INVALID_ARGUMENT


def test_a_context_outlives_its_graph_handle(probe: Probe) -> None:
    graph = probe.load("doubling")
    context = probe.context(graph)
    assert probe.call("unload", graph) == Errno.SUCCESS
    assert probe.call("init_execution_context", graph, 8000) == Errno.INVALID_ARGUMENT
    assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS


def test_calls_out_of_order_are_invalid_arguments(probe: Probe) -> None:
    context = probe.context(probe.load("doubling"))
    assert probe.call("compute", context) == Errno.INVALID_ARGUMENT
    assert probe.call("get_output", context, 0, 4096, 4096, 8200) == Errno.INVALID_ARGUMENT
    assert probe.call("set_input", context, 7, probe.tensor(X)) == Errno.INVALID_ARGUMENT
    assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("get_output", context, 0, 4096, 4096, 8200) == Errno.INVALID_ARGUMENT
    assert probe.call("compute", context) == Errno.SUCCESS
    assert probe.call("get_output", context, 1, 4096, 4096, 8200) == Errno.INVALID_ARGUMENT
    assert probe.call("get_output", context, U32_MAX, 4096, 4096, 8200) == Errno.INVALID_ARGUMENT


@pytest.mark.parametrize("n_buffer", [0, 1, 11])
def test_a_short_buffer_stays_untouched_and_learns_the_size(probe: Probe, n_buffer: int) -> None:
    context = probe.context(probe.load("doubling"))
    assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS
    probe.put(4096, b"\xaa" * 16)
    assert probe.call("get_output", context, 0, 4096, n_buffer, 8200) == Errno.TOO_LARGE
    assert bytes(probe.view()[4096:4112]) == b"\xaa" * 16
    assert probe.u32(8200) == X.nbytes
    assert probe.call("get_output", context, 0, 4096, X.nbytes, 8200) == Errno.SUCCESS
    assert bytes(probe.view()[4096 + X.nbytes : 4112]) == b"\xaa" * 4


def test_live_graphs_and_contexts_are_bounded(probe: Probe) -> None:
    graphs = [probe.load("doubling") for _ in range(MAX_GRAPHS)]
    assert probe.call("load_by_name", 0, probe.put(0, b"doubling"), 8000) == Errno.BUSY
    assert probe.call("unload", graphs[0]) == Errno.SUCCESS
    contexts = [probe.context(graphs[1]) for _ in range(MAX_CONTEXTS)]
    assert probe.call("init_execution_context", graphs[1], 8000) == Errno.BUSY
    assert probe.call("finalize_execution_context", contexts[0]) == Errno.SUCCESS
    assert_works(probe)


def test_live_input_bytes_are_bounded(probe: Probe) -> None:
    graph = probe.load("doubling")
    first, second = probe.context(graph), probe.context(graph)
    half = probe.tensor(np.zeros(8192, np.uint8), data=16_384)
    assert probe.call("set_input", first, 0, half) == Errno.SUCCESS
    assert probe.call("set_input", first, 0, half) == Errno.SUCCESS, "an input set again counts once"
    assert probe.call("set_input", second, 0, half) == Errno.SUCCESS
    assert probe.call("set_input", second, 1, probe.tensor(X)) == Errno.TOO_LARGE
    assert probe.call("finalize_execution_context", first) == Errno.SUCCESS
    assert_works(probe)


def test_a_fault_below_is_a_runtime_error_with_a_log_line(probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    context = probe.context(probe.load("broken"))
    with caplog.at_level(logging.ERROR):
        assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.RUNTIME_ERROR
        assert probe.call("compute", context) == Errno.RUNTIME_ERROR
        assert probe.call("get_output", context, 0, 4096, 4096, 8200) == Errno.RUNTIME_ERROR
        assert probe.call("finalize_execution_context", context) == Errno.RUNTIME_ERROR
        assert probe.call("init_execution_context", probe.load("unloadable"), 8000) == Errno.RUNTIME_ERROR
    assert len(caplog.records) == 5
    assert all(record.exc_info for record in caplog.records)
    assert "the device is lost" in caplog.text
    assert probe.call("compute", context) == Errno.INVALID_ARGUMENT, (
        "a context that cannot be closed is gone all the same"
    )
    assert_works(probe)


def test_an_instance_without_memory_and_a_stopped_one(probe: Probe) -> None:
    probe.has_memory = False
    assert probe.call("load_by_name", 0, 8, 8000) == Errno.MISSING_MEMORY
    probe.nn = None
    assert probe.call("load_by_name", 0, 8, 8000) == Errno.RUNTIME_ERROR


def test_close_frees_every_context_once(module: Module, doubling: Doubling, caplog: pytest.LogCaptureFixture) -> None:
    nn = WasiNn({"broken": Broken(), "doubling": doubling})
    probe = Probe(module, nn)
    probe.context(probe.load("broken"))
    context = probe.context(probe.load("doubling"))
    nn.close()
    nn.close()
    assert doubling.contexts[0].closed
    assert "cannot be closed" in caplog.text
    assert not doubling.contexts[0].peers
    assert probe.call("compute", context) == Errno.INVALID_ARGUMENT
    assert probe.call("load_by_name", 0, probe.put(0, b"doubling"), 8000) == Errno.NOT_FOUND


def test_the_last_error_names_call_and_reason(probe: Probe) -> None:
    assert probe.call("load_by_name", 0, probe.put(0, b"nobody"), 8000) == Errno.NOT_FOUND
    assert probe.nn is not None
    assert probe.nn.last_error == "load_by_name(0, 6, 8000) → not_found: no graph is named 'nobody'"


NASTY = (0, 1, 2, 1000, 4096, PAGE - 4, PAGE - 1, PAGE, 2**31 - 1, 2**31, U32_MAX - 19, U32_MAX - 3, U32_MAX)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_arguments_reach_past_the_guest(probe: Probe, name: str) -> None:
    """Every call with every mix of awkward u32s (3000 of them where there are more) answers with an error number."""
    arity = {"load": 5, "load_by_name_with_config": 5, "get_output": 5, "load_by_name": 3, "set_input": 3}.get(name)
    arity = arity or (2 if name == "init_execution_context" else 1)
    context = probe.context(probe.load("doubling"))
    assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS
    mixes = list(itertools.product(NASTY, repeat=arity))
    for arguments in random.Random(0).sample(mixes, min(len(mixes), 3000)):
        assert probe.call(name, *arguments) in set(Errno), arguments
    assert_works_afresh(probe)


def assert_works_afresh(probe: Probe) -> None:
    """The next instance of the same service works, whatever this one has left behind."""
    assert probe.nn is not None
    probe.nn.close()
    probe.nn = WasiNn({"doubling": Doubling()})
    assert_works(probe)
    probe.nn.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_tensor_records_are_harmless(probe: Probe, seed: int) -> None:
    """1000 records of awkward fields each: refused, or what arrives has the stated shape and lies within bounds."""
    draw = random.Random(seed)
    context = probe.context(probe.load("doubling"))
    for _ in range(1000):
        rank, dims = draw.choice(NASTY[:5]), [draw.choice(NASTY) for _ in range(4)]
        probe.put(1100, struct.pack("<4I", *dims))
        fields = (draw.choice([1100, *NASTY]), rank, draw.randrange(256) % 9, draw.choice(NASTY), draw.choice(NASTY))
        probe.put(1000, struct.pack("<IIBxxxII", *fields))
        assert probe.call("set_input", context, draw.randrange(3), 1000) in set(Errno), fields
    assert_works_afresh(probe)
