"""Graphs whose computes belong to a run: what precedes a compute, what ends it, how contexts find each other."""

import logging
from collections.abc import Mapping

import pytest

from service.errors import ClientGone
from service.guest.runner import GuestError
from service.guest.wasi_nn import ExecutionContext
from service.transcription.staged import Staged, StagedContext
from tests.support.guests import DOUBLE, Compile, Doubling, limits


def test_a_compute_begins_before_it_computes() -> None:
    seen: list[str] = []
    graph = Staged(Doubling(at_compute=lambda: seen.append("compute")), lambda: seen.append("begin"))
    graph.init_execution_context({}).compute()
    assert seen == ["begin", "compute"]


def test_a_run_that_ends_while_its_compute_waits_computes_nothing(
    compile_guest: Compile, caplog: pytest.LogCaptureFixture
) -> None:
    def begin() -> None:
        raise ClientGone

    guest, graph = compile_guest(DOUBLE), Doubling(at_compute=lambda: pytest.fail("a compute"))
    with caplog.at_level(logging.WARNING), pytest.raises(GuestError, match=r"compute.* → runtime_error: The client"):
        guest.run({}, [], {"m/doubling": Staged(graph, begin)}, lambda _: pytest.fail("an event"), limits())
    assert graph.closed == 1 and not caplog.records


def test_a_fault_stays_a_fault() -> None:
    def fail() -> None:
        raise OSError("the device is gone")

    with pytest.raises(OSError, match="gone"):
        Staged(Doubling(fail)).init_execution_context({}).compute()


def test_contexts_find_their_peers_as_their_graphs_made_them() -> None:
    found: list[Mapping[int, ExecutionContext]] = []

    class Attending(Doubling):
        def init_execution_context(self, peers: Mapping[int, ExecutionContext]) -> "Doubling":
            found.append(peers)
            return self

    plain, inner = Doubling(), Doubling()
    contexts: dict[int, ExecutionContext] = {0: plain}
    Staged(Attending()).init_execution_context(contexts)
    contexts[7] = Staged(inner).init_execution_context({})
    assert isinstance(contexts[7], StagedContext)
    (peers,) = found
    assert dict(peers) == {0: plain, 7: inner} and peers.get(1) is None
