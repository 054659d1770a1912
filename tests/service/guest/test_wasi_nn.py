"""The WASI-NN calls, made by a small WebAssembly guest with valid arguments: inputs arrive, and outputs return."""

from typing import Any

import numpy as np
import pytest
from wasmtime import Module

from service.guest.wasi_nn import DTYPES, MAX_GRAPHS, Errno, WasiNn
from tests.support.nn_probe import PAGE, Broken, Doubling, Probe, X


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


def test_only_one_byte_of_the_tensor_type_is_read(probe: Probe) -> None:
    context = probe.context(probe.load("doubling"))
    probe.put(probe.tensor(X) + 9, b"\xff\xff\xff")
    assert probe.call("set_input", context, 0, 1000) == Errno.SUCCESS


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


def test_handles_are_never_reused(probe: Probe) -> None:
    for expected in range(3 * MAX_GRAPHS):
        assert probe.load("doubling") == expected
        assert probe.context(expected) == expected
        assert probe.call("finalize_execution_context", expected) == Errno.SUCCESS
        assert probe.call("finalize_execution_context", expected) == Errno.INVALID_ARGUMENT
        assert probe.call("unload", expected) == Errno.SUCCESS
        assert probe.call("unload", expected) == Errno.INVALID_ARGUMENT


def test_a_context_outlives_its_graph_handle(probe: Probe) -> None:
    graph = probe.load("doubling")
    context = probe.context(graph)
    assert probe.call("unload", graph) == Errno.SUCCESS
    assert probe.call("init_execution_context", graph, 8000) == Errno.INVALID_ARGUMENT
    assert probe.call("set_input", context, 0, probe.tensor(X)) == Errno.SUCCESS
    assert probe.call("compute", context) == Errno.SUCCESS


def test_close_frees_every_context_once(
    probe_module: Module, doubling: Doubling, caplog: pytest.LogCaptureFixture
) -> None:
    nn = WasiNn({"broken": Broken(), "doubling": doubling})
    probe = Probe(probe_module, nn)
    probe.context(probe.load("broken"))
    context = probe.context(probe.load("doubling"))
    nn.close()
    nn.close()
    assert doubling.contexts[0].closed
    assert "cannot be closed" in caplog.text
    assert not doubling.contexts[0].peers
    assert probe.call("compute", context) == Errno.INVALID_ARGUMENT
    assert probe.call("load_by_name", 0, probe.put(0, b"doubling"), 8000) == Errno.NOT_FOUND
