"""The WASI-NN calls with wrong and hostile arguments: an error number each, nothing outside the guest touched."""

import itertools
import logging
import random
import struct

import numpy as np
import pytest

from service.guest.wasi_nn import MAX_CONTEXTS, MAX_GRAPHS, MAX_RANK, Errno, WasiNn
from tests.support.nn_probe import (
    FUNCTIONS,
    PAGE,
    U32_MAX,
    Doubling,
    Probe,
    X,
    assert_works,
)

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


def test_the_last_error_names_call_and_reason(probe: Probe) -> None:
    assert probe.call("load_by_name", 0, probe.put(0, b"nobody"), 8000) == Errno.NOT_FOUND
    assert probe.nn is not None
    assert probe.nn.last_error == "load_by_name(0, 6, 8000) → not_found: no graph is named 'nobody'"


NASTY = (0, 1, 2, 1000, 4096, PAGE - 4, PAGE - 1, PAGE, 2**31 - 1, 2**31, U32_MAX - 19, U32_MAX - 3, U32_MAX)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_arguments_reach_past_the_guest(probe: Probe, name: str) -> None:
    """Every call with every mix of awkward u32s (3000 if there are more) returns an error number."""
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
    """The next instance of the same service works, whatever this one left behind."""
    assert probe.nn is not None
    probe.nn.close()
    probe.nn = WasiNn({"doubling": Doubling()})
    assert_works(probe)
    probe.nn.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_tensor_records_are_harmless(probe: Probe, seed: int) -> None:
    """1000 records of awkward fields each: rejected, or the tensor has the stated shape, within bounds."""
    draw = random.Random(seed)
    context = probe.context(probe.load("doubling"))
    for _ in range(1000):
        rank, dims = draw.choice(NASTY[:5]), [draw.choice(NASTY) for _ in range(4)]
        probe.put(1100, struct.pack("<4I", *dims))
        fields = (draw.choice([1100, *NASTY]), rank, draw.randrange(256) % 9, draw.choice(NASTY), draw.choice(NASTY))
        probe.put(1000, struct.pack("<IIBxxxII", *fields))
        assert probe.call("set_input", context, draw.randrange(3), 1000) in set(Errno), fields
    assert_works_afresh(probe)
