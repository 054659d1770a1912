"""Contexts that choose tokens at the same time share passes, and each chooses exactly what it would alone."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from kernels.inputs import AUDIO, CHOSEN, LOG_PROBABILITIES, LOGITS, RULES
from kernels.webgpu.decoder.graph import DecoderGraph
from kernels.webgpu.device import Device, DeviceError, open_device
from kernels.webgpu.recording import Dispatch, Recording
from kernels.webgpu.wgsl import SUBGROUP, WORKGROUP
from tests.support.decoding import (
    EOT,
    N_VOCAB,
    SMALL,
    Array,
    cross_memory,
    random_checkpoint,
    rules,
    small_tiling,
    step,
)

N_AUDIO = 6


@pytest.fixture(scope="module", params=[SUBGROUP, WORKGROUP])
def graph(request: pytest.FixtureRequest, device: Device) -> Iterator[DecoderGraph]:
    checkpoint = random_checkpoint(SMALL)
    states = np.random.default_rng(5).standard_normal((N_AUDIO, SMALL.n_audio_ctx, SMALL.n_audio_state))
    heard = [cross_memory(device, checkpoint, one.astype(np.float32)) for one in states]
    made = DecoderGraph(device, checkpoint, lambda peer: heard[peer], small_tiling(device, request.param))
    yield made
    made.close()
    for cross in heard:
        cross.release()


@dataclass(frozen=True)
class Request:
    """A guest's calls to its own context: chunks of greedy steps after a prompt."""

    audio: int
    prompt: Sequence[int]
    chunks: Sequence[int]  # n_steps of each compute
    rules: dict[str, Any] = field(default_factory=dict)
    n_sequences: int = 1

    def run(self, graph: DecoderGraph) -> list[Array]:
        """Every chunk's tokens and log-probabilities, and the logits at the end."""
        context = graph.init_execution_context(dict(enumerate(range(N_AUDIO))))
        context.set_input(AUDIO, np.array([self.audio], np.int32))
        found: list[Array] = []
        rows = [[*self.prompt[:-1], self.prompt[-1] + i] for i in range(self.n_sequences)]
        for n_steps in self.chunks:
            context.set_input(RULES, rules(n_steps, sample_begin=len(self.prompt), **self.rules))
            step(context, *rows)
            found += [context.get_output(CHOSEN), context.get_output(LOG_PROBABILITIES)]
            rows = found[-2][:, -1:].tolist()
        found.append(context.get_output(LOGITS))
        context.close()
        return found


class Waiting(deque[Any]):
    """The batch's queue, which can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = threading.Semaphore(0)

    def append(self, greedy: Any) -> None:
        super().append(greedy)
        self.arrived.release()


def logits_launches(recordings: Sequence[Recording]) -> int:
    steps = [step for recording in recordings for step in recording.steps if isinstance(step, Dispatch)]
    return sum("logits" in step.pipeline.name for step in steps)


def together(
    graph: DecoderGraph, requests: Sequence[Request], monkeypatch: pytest.MonkeyPatch, *, after: int = 0
) -> tuple[list[list[Array]], int]:
    """All at once, the first `after` submits of the first of them before the others; and how often logits were made."""
    device, waiting, recordings = graph.program.device, Waiting(), list[Recording]()
    submit, first_is_alone = device.submit, threading.Event()

    def counting(recording: Recording, **named: Any) -> Any:
        recordings.append(recording)
        if after and len(recordings) == after:
            first_is_alone.set()
            for _ in requests:
                waiting.arrived.acquire()
        return submit(recording, **named)

    monkeypatch.setattr(graph._batch, "_waiting", waiting)
    monkeypatch.setattr(device, "submit", counting)
    with ThreadPoolExecutor(len(requests)) as threads:
        if after:
            futures = [threads.submit(requests[0].run, graph)]
            first_is_alone.wait()
            futures += [threads.submit(request.run, graph) for request in requests[1:]]
        else:
            device.enqueue(lambda: [waiting.arrived.acquire() for _ in requests])
            futures = [threads.submit(request.run, graph) for request in requests]
        found = [future.result() for future in futures]
    monkeypatch.undo()
    return found, logits_launches(recordings)


def assert_as_alone(graph: DecoderGraph, requests: Sequence[Request], found: Sequence[Sequence[Array]]) -> None:
    for request, of_batch in zip(requests, found, strict=True):
        for of_one, alone in zip(of_batch, request.run(graph), strict=True):
            assert np.array_equal(of_one, alone), request


SAME = {"suppress": [5, 6, 7], "begin_suppress": [8, EOT]}
REQUESTS = [
    Request(0, [1, 2, 3], [8, 8, 8], SAME),
    Request(1, [4], [3, 9, 1], {**SAME, "limit": 50}),
    Request(2, list(range(10, 29)), [8, 8], SAME),  # a prompt of more than one pass
    Request(3, [9, 8], [6, 6], SAME, n_sequences=5),
    Request(3, [30, 31], [8, 5], SAME),  # the same audio twice
]


def test_contexts_together_choose_what_each_would_alone(graph: DecoderGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    found, n_launches = together(graph, REQUESTS, monkeypatch)
    alone = sum(int(chosen.shape[1]) for of_one in found for chosen in of_one[:-1:2]) + len(found)
    assert n_launches < 0.7 * alone
    assert_as_alone(graph, REQUESTS, found)


def test_a_later_context_joins_between_rounds(graph: DecoderGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"suppress": [5, 6, 7, EOT]}  # nothing ends early
    requests = [Request(0, [1, 2], [24], rules), Request(1, [3, 4], [6], rules), Request(2, [5, 6], [6, 6], rules)]
    found, n_launches = together(graph, requests, monkeypatch, after=4)
    assert n_launches < 24 + 6 + 12
    assert_as_alone(graph, requests, found)


def test_other_rules_wait_for_their_own_round(graph: DecoderGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        Request(0, [1, 2], [6, 6], SAME),
        Request(1, [1, 2], [6, 6], {"suppress": [9]}),
        Request(2, [1, 2], [6, 6], {"timestamp_begin": -1}),
        Request(3, [1, 2], [6, 6], SAME),
    ]
    assert_as_alone(graph, requests, together(graph, requests, monkeypatch)[0])


def test_more_sequences_than_a_pass_has_rows(graph: DecoderGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(i, [1, 20 * i], [5, 4], SAME, n_sequences=5) for i in range(N_AUDIO)]
    assert_as_alone(graph, requests, together(graph, requests, monkeypatch)[0])


def test_one_that_fails_leaves_the_others_alone(graph: DecoderGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_first = {"timestamp_begin": -1, "begin_suppress": list(range(N_VOCAB))}
    good = Request(0, [1], [6], {**nothing_first, "suppress": [3]})
    outcomes: list[Any] = []

    class Past(Request):
        """A context past its first token, so that tokens suppressed only at first are allowed."""

        def run(self, graph: DecoderGraph) -> list[Array]:
            context = graph.init_execution_context({0: 0})
            context.set_input(AUDIO, np.array([0], np.int32))
            context.set_input(RULES, rules(6, sample_begin=1, **self.rules))
            step(context, [1, 2])
            outcomes.append(context.get_output(CHOSEN))
            context.close()
            return [outcomes[-1]]

    class Failing(Request):
        def run(self, graph: DecoderGraph) -> list[Array]:
            with pytest.raises(ValueError, match="no token"):
                super().run(graph)
            return []

    requests = [Past(0, [], [], good.rules), Failing(0, [1], [6], good.rules)]
    together(graph, requests, monkeypatch)
    requests[0].run(graph)
    assert np.array_equal(outcomes[0], outcomes[1])


def test_a_context_without_memory_gets_an_error(graph: DecoderGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(capacity: int) -> None:
        raise DeviceError("the device has no memory")

    with monkeypatch.context() as patched:
        patched.setattr(graph._pool, "_make", refuse)
        with pytest.raises(DeviceError, match="no memory"):
            Request(0, [1], [4], SAME, n_sequences=3).run(graph)
    with monkeypatch.context() as patched:  # in the middle: everyone in that round
        patched.setattr(graph.program, "logits", lambda *given: refuse(0))
        with pytest.raises(DeviceError, match="no memory"):
            Request(0, [1], [4], SAME).run(graph)
    assert len(Request(0, [1], [4], SAME).run(graph)) == 3  # and the next is served


def test_after_the_device_is_closed_nobody_waits() -> None:
    try:
        device = open_device()
    except DeviceError as error:
        pytest.skip(str(error))
    checkpoint = random_checkpoint(SMALL)
    cross = cross_memory(device, checkpoint, np.ones((SMALL.n_audio_ctx, SMALL.n_audio_state), np.float32))
    graph = DecoderGraph(device, checkpoint, lambda peer: cross)
    context = graph.init_execution_context({0: 0})
    context.set_input(AUDIO, np.array([0], np.int32))
    context.set_input(RULES, rules(3))
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        step(context, [1])
