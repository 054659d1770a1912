"""The decoder graph on a WebGPU device: its inputs and outputs, and Whisper's own tokens."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kernels.checkpoints.load import load_checkpoint
from kernels.inputs import (
    AUDIO,
    CHOSEN,
    CROSS_ATTENTION,
    LOG_PROBABILITIES,
    LOGITS,
    ORIGINS,
    RULES,
    TOKEN_PROBABILITIES,
    TOKENS,
)
from kernels.webgpu.decoder.graph import DecoderGraph
from kernels.webgpu.device import Device
from kernels.webgpu.wgsl import SUBGROUP, WORKGROUP
from tests.support.decoding import (
    EOT,
    N_VOCAB,
    SMALL,
    Array,
    Pair,
    cross_memory,
    rules,
    rules_tensor,
    same,
    small_tiling,
    step,
    tokens,
)


@pytest.fixture(scope="module", params=[SUBGROUP, WORKGROUP, "hardware"])
def pair(request: pytest.FixtureRequest, device: Device) -> Iterator[Pair]:
    made = Pair(device, SMALL, small_tiling(device, request.param))
    yield made
    made.close()


def test_logits_are_the_cpu_targets_through_prompts_beams_and_reordering(pair: Pair) -> None:
    both = pair.contexts()
    rng = np.random.default_rng(1)
    script: list[tuple[Array, list[int] | None]] = [
        (rng.integers(0, N_VOCAB, (1, 19)), None),  # a prompt longer than one pass
        (rng.integers(0, N_VOCAB, (5, 1)), [0] * 5),  # one sequence becomes five
        (rng.integers(0, N_VOCAB, (5, 1)), [4, 0, 0, 3, 1]),
        (rng.integers(0, N_VOCAB, (5, 4)), None),  # and a prompt of all of them, over more than one pass
        (rng.integers(0, N_VOCAB, (3, 1)), [2, 2, 4]),
        (rng.integers(0, N_VOCAB, (8, 1)), [0, 1, 2, 0, 1, 2, 0, 1]),
        (rng.integers(0, N_VOCAB, (8, 2)), [7, 6, 5, 4, 3, 2, 1, 0]),
        (rng.integers(0, N_VOCAB, (16, 2)), list(range(8)) * 2),  # as many as there may be
    ]
    for new, origins in script:
        found, expected = (step(context, *new.tolist(), origins=origins).get_output(LOGITS) for context in both)
        assert same(found, expected)
    for context in both:
        context.close()


def test_word_timing_outputs_are_the_cpu_targets(pair: Pair) -> None:
    new = np.random.default_rng(2).integers(0, EOT, (2, 12))
    new[0, 5] = EOT
    both = pair.contexts()
    for context in both:
        context.set_input(RULES, rules(0))
        step(context, *new.tolist())
    for index in (CROSS_ATTENTION, TOKEN_PROBABILITIES, LOGITS):  # reading one does not spoil the others
        found, expected = (context.get_output(index) for context in both)
        assert same(np.nan_to_num(found), np.nan_to_num(expected))
        assert (np.isnan(found) == np.isnan(expected)).all()
    found, expected = (step(context, [7], [8]).get_output(LOGITS) for context in both)
    assert same(found, expected)
    for context in both:
        context.close()


def test_running_ahead_is_stepping_is_the_cpu_target(pair: Pair) -> None:
    suppress = [5, 6, 7, EOT]  # nothing ends early
    results: list[tuple[Array, Array]] = []
    for n_steps in (24, 7, 1):
        context = pair.contexts()[0]
        context.set_input(RULES, rules(n_steps, sample_begin=3, suppress=suppress))
        step(context, [1, 2, 3])
        chosen, likely = [context.get_output(CHOSEN)], [context.get_output(LOG_PROBABILITIES)]
        while sum(part.shape[1] for part in chosen) < 24:
            context.set_input(
                RULES, rules(min(n_steps, 24 - sum(p.shape[1] for p in chosen)), sample_begin=3, suppress=suppress)
            )
            step(context, [int(chosen[-1][0, -1])])
            chosen.append(context.get_output(CHOSEN))
            likely.append(context.get_output(LOG_PROBABILITIES))
        results.append((np.concatenate(chosen, axis=1), np.concatenate(likely, axis=1)))
        context.close()
    for chosen_now, likely_now in results[1:]:
        assert (chosen_now == results[0][0]).all() and (likely_now == results[0][1]).all()
    reference = pair.contexts()[1]
    reference.set_input(RULES, rules(24, sample_begin=3, suppress=suppress))
    step(reference, [1, 2, 3])
    assert (reference.get_output(CHOSEN) == results[0][0]).all()
    assert same(results[0][1], reference.get_output(LOG_PROBABILITIES))


def test_sequences_side_by_side_choose_what_each_would_alone(pair: Pair) -> None:
    starts = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    together = pair.contexts()[0]
    together.set_input(RULES, rules(9, sample_begin=2))
    step(together, *starts)
    for i, start in enumerate(starts):
        alone = pair.contexts()[0]
        alone.set_input(RULES, rules(9, sample_begin=2))
        step(alone, start)
        n = alone.get_output(CHOSEN).shape[1]
        assert (together.get_output(CHOSEN)[i, :n] == alone.get_output(CHOSEN)[0]).all()
        assert (together.get_output(CHOSEN)[i, n:] == EOT).all()
        assert same(together.get_output(LOG_PROBABILITIES)[i, :n], alone.get_output(LOG_PROBABILITIES)[0])
        alone.close()
    together.close()


def test_contexts_in_several_threads_do_not_disturb_each_other(pair: Pair) -> None:
    def decode(start: int) -> list[int]:
        context = pair.contexts()[0]
        context.set_input(RULES, rules(5, suppress=[EOT]))
        chosen = [start]
        for _ in range(4):
            chosen += step(context, chosen[-1:]).get_output(CHOSEN)[0].tolist()
        context.close()
        return chosen

    starts = list(range(8))
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(decode, starts)) == [decode(start) for start in starts]


def test_a_full_context_stops_the_run(pair: Pair) -> None:
    context = pair.contexts()[0]
    context.set_input(RULES, rules(20, suppress=[EOT]))
    step(context, [3] * (SMALL.n_text_ctx - 4))
    assert context.get_output(CHOSEN).shape == (1, 5)  # the last one has no place left, and needs none
    with pytest.raises(ValueError, match="text context"):
        step(context, [3, 3])


def test_new_audio_starts_afresh(pair: Pair) -> None:
    context = pair.contexts()[0]
    first = step(context, [1, 2, 3]).get_output(LOGITS)
    step(context, [4], [5], origins=[0, 0])
    context.set_input(AUDIO, np.array([1], np.int32))
    with pytest.raises(ValueError):
        context.get_output(LOGITS)
    assert (step(context, [1, 2, 3]).get_output(LOGITS) == first).all()
    context.close()
    context.close()
    with pytest.raises(ValueError, match="closed"):
        context.set_input(TOKENS, tokens([1]))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({TOKENS: tokens([1])}, "audio"),
        ({AUDIO: np.array([9], np.int32)}, "encoder context"),
        ({AUDIO: np.array([1], np.int32)}, "tokens"),
        ({AUDIO: np.array([1], np.int32), TOKENS: tokens([N_VOCAB])}, "token"),
        ({AUDIO: np.array([1], np.int32), TOKENS: tokens([-1])}, "token"),
        ({AUDIO: np.array([1], np.int32), TOKENS: tokens([1]).astype(np.int64)}, "i32"),
        ({AUDIO: np.array([1], np.int32), TOKENS: tokens(*[[1]] * 17)}, "sequences"),
        ({AUDIO: np.array([1], np.int32), TOKENS: tokens([1]), ORIGINS: np.array([0], np.int32)}, "origin"),
        ({AUDIO: np.array([1], np.int32), TOKENS: tokens([1]), RULES: rules(1, sample_begin=2)}, "sampling"),
        ({4: tokens([1])}, "no input"),
    ],
)
def test_what_does_not_fit_is_refused(pair: Pair, inputs: dict[int, Array], words: str) -> None:
    context = pair.gpu.init_execution_context({1: object()})
    with pytest.raises(ValueError, match=words):
        for index, tensor in inputs.items():
            context.set_input(index, tensor)
        context.compute()


def test_rules_that_leave_nothing_are_refused(pair: Pair) -> None:
    for context in pair.contexts():
        context.set_input(RULES, rules(1, sample_begin=1, suppress=list(range(N_VOCAB))))
        with pytest.raises(ValueError, match="no token"):
            step(context, [1])
        with pytest.raises(ValueError, match="chosen"):
            context.get_output(CHOSEN)
        context.close()


@pytest.fixture(scope="module")
def tiny(device: Device, shared: Path) -> Iterator[tuple[DecoderGraph, list[str]]]:
    """tiny.en's decoder, whose peers are the names of clips that the reference has encoded."""
    checkpoint = load_checkpoint(shared / "models" / "tiny_en")
    heard = {}
    for file in ("features-jfk.npz", "features-librispeech.npz"):
        features = np.load(shared / "expected" / file)
        heard[str(features["clip"])] = cross_memory(device, checkpoint, features["audio_states"])
    graph = DecoderGraph(device, checkpoint, heard.__getitem__)
    yield graph, list(heard)
    graph.close()


@pytest.mark.parametrize("name", ["timestamps", "no-timestamps"])
def test_tiny_en_says_what_whisper_says(tiny: tuple[DecoderGraph, list[str]], shared: Path, name: str) -> None:
    settings = json.loads((shared / "models" / "tiny_en" / "generation_config.json").read_text())
    prompt = [50257] if name == "timestamps" else [50257, 50362]
    special = [50257, *range(50357, 50362)]
    wanted = rules_tensor(
        n_steps=8,
        sample_begin=len(prompt),
        eot=50256,
        timestamp_begin=50363 if name == "timestamps" else -1,
        no_timestamps=50362,
        limit=50,
        suppress=sorted({*settings["suppress_tokens"], *special}),
        begin_suppress=[220, 50256],
    )
    with (shared / "expected" / f"decode-{name}.jsonl").open() as lines:
        expected = {line["file"]: line for line in map(json.loads, lines)}
    graph, clips = tiny
    for clip in clips:
        answer = next(expected[file] for file in expected if file.endswith(clip))
        context = graph.init_execution_context({1: clip})
        context.set_input(AUDIO, np.array([1], np.int32))
        context.set_input(RULES, wanted)
        chosen, likely = [prompt[-1]], [0.0]
        new = prompt
        while chosen[-1] != 50256:
            step(context, new)
            chosen += context.get_output(CHOSEN)[0].tolist()
            likely += context.get_output(LOG_PROBABILITIES)[0].tolist()
            new = chosen[-1:]
        assert chosen[1:-1] == answer["tokens"]
        assert abs(sum(likely) / (len(likely) - 1) - answer["avg_logprob"]) < 2e-3
        context.close()
