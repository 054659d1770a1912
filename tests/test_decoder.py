"""The decoder graph on a WebGPU device: its inputs and outputs, the rules it chooses by, and Whisper's own tokens."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.checkpoint import Checkpoint, Dimensions, load_checkpoint
from kernels.cpu import CpuModel
from kernels.cross_memory import CrossMemory
from kernels.decoder import DecoderGraph
from kernels.decoder_kernels import Tiling
from kernels.decoder_source_parts import SUBGROUP, WORKGROUP
from kernels.device import Device, DeviceError, open_device
from kernels.formats_common import expected_shapes
from kernels.rules import Rules
from tests.decoding import cross_memory, rules_tensor

Array = NDArray[Any]
AUDIO, TOKENS, ORIGINS, RULES = range(4)
LOGITS, CHOSEN, LOG_PROBABILITIES, CROSS_ATTENTION, TOKEN_PROBABILITIES = range(5)
# A small vocabulary: text, end of text, <|notimestamps|>, timestamps.
EOT, NO_TIMESTAMPS, BEGIN, N_VOCAB = 400, 402, 405, 701


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    try:
        opened = open_device()
    except DeviceError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


def random_checkpoint(dims: Dimensions, seed: int = 3) -> Checkpoint:
    """Weights drawn so that every part of the decoder matters to what it says; f16, as checkpoints are stored."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in expected_shapes(dims).items():
        scale = 0.3 if name.endswith("bias") else 1.5 * shape[-1] ** -0.5
        array = rng.standard_normal(shape) * scale
        arrays[name] = (1 + 0.3 * array if name.endswith("ln.weight") else array).astype(np.float16)
    heads = tuple((layer, head) for layer in range(dims.n_text_layer) for head in range(dims.n_text_head))
    return Checkpoint(dims, arrays, "{}", heads[1:], False)


class Pair:
    """The same random model on the device and in NumPy, both over the same audio."""

    def __init__(self, device: Device, dims: Dimensions, tiling: Tiling | None = None) -> None:
        self.checkpoint = random_checkpoint(dims)
        self.cpu = CpuModel(self.checkpoint)
        self.encoder = self.cpu.encoder.init_execution_context({})
        mel = np.random.default_rng(0).standard_normal((1, dims.n_mels, 2 * dims.n_audio_ctx)).astype(np.float32)
        self.encoder.set_input(0, mel)
        self.encoder.compute()
        self.cross = cross_memory(device, self.checkpoint, self.encoder.get_output(0)[0])
        self.gpu = DecoderGraph(device, self.checkpoint, lambda context: self.cross, tiling)

    def contexts(self) -> tuple[Any, Any]:
        """A device context and its NumPy twin, their audio set."""
        both = (
            self.gpu.init_execution_context({1: object()}),
            self.cpu.decoder.init_execution_context({1: self.encoder}),
        )
        for context in both:
            context.set_input(AUDIO, np.array([1], np.int32))
        return both

    def close(self) -> None:
        self.gpu.close()
        self.cross.release()
        self.cpu.close()


SMALL = Dimensions(8, 37, 64, 1, 1, N_VOCAB, 45, 64, 2, 2)


def small_tiling(device: Device, kind: str) -> Tiling:
    """Several splits and tiles, for SMALL's sizes. Skips where the device has no use for that kind."""
    if kind == WORKGROUP:
        return Tiling(WORKGROUP, 16, 64, 4, 2, 64, 3, 16)
    if Tiling.of(device).kind != SUBGROUP:
        pytest.skip(f"{device.info.name} has no use for those kernels")
    lanes = device.subgroup_size
    return Tiling(SUBGROUP, lanes, lanes, 2, 2, lanes, 1, 2)


@pytest.fixture(scope="module", params=[SUBGROUP, WORKGROUP])
def pair(request: pytest.FixtureRequest, device: Device) -> Iterator[Pair]:
    made = Pair(device, SMALL, small_tiling(device, request.param))
    yield made
    made.close()


def tokens(*rows: Sequence[int]) -> NDArray[np.int32]:
    return np.array(rows, np.int32)


def step(context: Any, *rows: Sequence[int], origins: Sequence[int] | None = None) -> Any:
    """Append and compute."""
    context.set_input(TOKENS, tokens(*rows))
    if origins is not None:
        context.set_input(ORIGINS, np.array(origins, np.int32))
    context.compute()
    return context


def same(found: Array, expected: Array, tolerance: float = 5e-3) -> bool:
    """Within what f16 caches cost, relative to the largest element."""
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


def rules(n_steps: int, **named: Any) -> NDArray[np.int32]:
    return rules_tensor(n_steps=n_steps, **{"eot": EOT, "timestamp_begin": BEGIN, **named})


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


def test_a_token_takes_34_launches_and_one_submit_holds_many(device: Device) -> None:
    dims = Dimensions(8, 20, 64, 1, 1, N_VOCAB, 32, 64, 1, 4)
    pair = Pair(device, dims)
    submitted: list[int] = []
    submit = device.submit

    def counting(recording: Any, **named: Any) -> Any:
        submitted.append(recording.n_dispatches)
        return submit(recording, **named)

    context = pair.contexts()[0]
    context.set_input(RULES, rules(6, suppress=[EOT]))
    device.submit = counting  # type: ignore[method-assign]
    step(context, [1])
    device.submit = submit  # type: ignore[method-assign]
    steps = pair.gpu.program.tiling.steps_per_submit
    assert len(submitted) == -(-6 // steps)
    assert sum(submitted) == 6 * 34 + 1  # the first token's embedding; each choice embeds the next
    pair.close()


def test_a_token_table_over_the_binding_limit_is_split(device: Device) -> None:
    whole = Pair(device, SMALL)
    limit, device.max_binding = device.max_binding, 300 * 2 * SMALL.n_text_state
    split = Pair(device, SMALL)
    device.max_binding = limit
    assert len(split.gpu.program.kernels.parts) == 3
    outputs = []
    for pair in (whole, split):
        context = pair.contexts()[0]
        context.set_input(RULES, rules(12, suppress=[EOT]))
        step(context, [650, 1, 350])
        outputs.append([context.get_output(index) for index in (LOGITS, CHOSEN, LOG_PROBABILITIES)])
        pair.close()
    for of_whole, of_split in zip(*outputs, strict=True):
        assert same(of_split, of_whole, 1e-5)


def test_no_request_waits_for_a_kernel_to_compile(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(device, Dimensions(8, 21, 64, 1, 1, N_VOCAB, 33, 64, 1, 1))

    def refuse(*named: Any, **more: Any) -> None:
        raise AssertionError(f"{named[0]} is compiled during a request")

    monkeypatch.setattr(device, "pipeline", refuse)
    context = pair.contexts()[0]
    context.set_input(RULES, rules(3, suppress=[EOT]))
    step(context, [1, 2, 3])  # a prompt, one sequence's steps
    step(context, [4], [5], origins=[0, 0])  # several sequences'
    assert context.get_output(TOKEN_PROBABILITIES).shape == (2, 1)
    pair.close()


@pytest.mark.parametrize("kind", [SUBGROUP, WORKGROUP])
def test_an_adapter_of_little_workgroup_memory_takes_row_by_row(
    device: Device, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "workgroup_memory", 1000)  # four rows of 64 columns are 1024 bytes
    pipeline, names = device.pipeline, set[str]()

    def noted(name: str, *constants: Any) -> Any:
        names.add(name)
        return pipeline(name, *constants)

    monkeypatch.setattr(device, "pipeline", noted)
    pair = Pair(device, SMALL, small_tiling(device, kind))
    assert f"decoder_ln_qkv_{kind}_1" in names and f"decoder_ln_qkv_{kind}_4" not in names
    both = pair.contexts()
    for rows in ([[1, 2, 3, 4, 5, 6]], [[7]]):
        found, expected = (step(context, *rows).get_output(LOGITS) for context in both)
        assert same(found, expected)
    pair.close()


def test_heads_the_kernels_are_not_for_are_the_devices_error(device: Device) -> None:
    with pytest.raises(DeviceError, match="heads of 64 / 16 columns"):
        DecoderGraph(
            device, random_checkpoint(Dimensions(8, 8, 64, 1, 1, N_VOCAB, 8, 64, 16, 1)), lambda context: context
        )


class Scripted:
    """A decoder of no layers that says, at position p, the logits of row p less their mean, whatever came before.

    The token table is 2⁻¹⁴ of the identity: the positions' embeddings are the logits, the tokens' hardly add to them.
    """

    def __init__(self, device: Device, logits: Array) -> None:
        n_positions, n_vocab = logits.shape
        n = -(-(n_vocab + 2) // 8) * 8
        rows = np.zeros((n_positions, n), np.float64)
        rows[:, :n_vocab] = logits - logits.mean(1, keepdims=True)
        scale = 1.1 * float(np.sqrt((rows**2).sum(1) / n).max()) + 0.1
        rows /= scale
        # The two columns after the vocabulary's make the mean 0 and the variance 1.
        mean, left = -rows.sum(1) / 2, n - (rows**2).sum(1)
        spread = np.sqrt(left / 2 - mean**2)
        rows[:, n_vocab], rows[:, n_vocab + 1] = mean + spread, mean - spread
        dims = Dimensions(8, 8, 8, 1, 1, n_vocab, n_positions, n, 1, 0)
        arrays: dict[str, Array] = {
            "decoder.token_embedding.weight": (np.eye(n_vocab, n) / 2**14).astype(np.float16),
            "decoder.positional_embedding": rows.astype(np.float32),
            "decoder.ln.weight": np.full(n, 2**14 * scale, np.float32),
            "decoder.ln.bias": np.zeros(n, np.float32),
        }
        checkpoint = Checkpoint(dims, arrays, "{}", (), False)
        cross = cross_memory(device, checkpoint, np.zeros((8, 8), np.float32))
        self.graph = DecoderGraph(device, checkpoint, lambda context: cross)

    def choose(self, history: Sequence[Sequence[int]], wanted: NDArray[np.int32]) -> tuple[Array, Array]:
        """→ chosen tokens and their log-probabilities after these histories."""
        context = self.graph.init_execution_context({1: object()})
        context.set_input(AUDIO, np.array([1], np.int32))
        context.set_input(RULES, wanted)
        step(context, *history)
        return context.get_output(CHOSEN), context.get_output(LOG_PROBABILITIES)


Script = Callable[[dict[int, float], Sequence[int], NDArray[np.int32]], int]


@pytest.fixture
def first_choice(device: Device) -> Script:
    """The token chosen after a history (its first token is the prompt) where only some logits are not −4."""

    def choose(logits: dict[int, float], history: Sequence[int], wanted: NDArray[np.int32]) -> int:
        rows = np.full((len(history) + 1, N_VOCAB), -4.0)
        rows[:, list(logits)] = list(logits.values())
        return int(Scripted(device, rows).choose([history], wanted)[0][0, 0])

    return choose


T0, T1, T2 = BEGIN, BEGIN + 1, BEGIN + 2


@pytest.mark.parametrize(
    ("logits", "history", "named", "expected"),
    [
        pytest.param({7: 20, 650: 20}, [0, T0, 9], {}, 7, id="a tie goes to the lower token"),
        pytest.param({7: 20, 8: 20, 9: 19}, [0, T0, 9], {"suppress": [7, 8]}, 9, id="suppressed tokens"),
        pytest.param({7: 20, EOT: 21, 9: 19}, [0], {"begin_suppress": [7, EOT], "timestamp_begin": -1}, 9, id="blank"),
        pytest.param({7: 20, 9: 19}, [0, 5], {"begin_suppress": [7], "timestamp_begin": -1}, 7, id="blank later"),
        pytest.param(
            {NO_TIMESTAMPS: 20, 9: 19}, [0, T0, 9], {"no_timestamps": NO_TIMESTAMPS}, 9, id="no <|notimestamps|>"
        ),
        pytest.param(
            {NO_TIMESTAMPS: 20},
            [0, 9],
            {"no_timestamps": NO_TIMESTAMPS, "timestamp_begin": -1},
            NO_TIMESTAMPS,
            id="nor is it barred without timestamps",
        ),
        pytest.param({9: 20, T2: 10}, [0], {}, T2, id="a timestamp first"),
        pytest.param({T2: 20, T1: 19}, [0], {"limit": 1}, T1, id="an early one"),
        pytest.param({T2: 20, 9: 10}, [0, T1], {}, 9, id="text after the first timestamp"),
        pytest.param({T2: 20, 9: 10}, [0, T0, 9, T1, T1], {}, 9, id="text after a pair"),
        pytest.param({9: 20, T2: 10}, [0, T0, 9, T1], {}, T2, id="a pair after text"),
        pytest.param({9: 20, EOT: 12, T2: 10}, [0, T0, 9, T1], {}, EOT, id="or the end"),
        pytest.param({T1: 20, T2: 19}, [0, T0, 9, T2], {}, T2, id="a pair may repeat its time, not go back"),
        pytest.param({T1: 20, T2: 19}, [0, T1, 9], {}, T2, id="a segment is not empty"),
        pytest.param({T1: 20, T2: 21, T2 + 1: 19}, [0, T0, 9, T2, T2, 8], {}, T2 + 1, id="nor the next one"),
        pytest.param({9: 10} | dict.fromkeys(range(T1, T1 + 9), 9.0), [0, T0, 9], {}, T1, id="timestamps together win"),
        pytest.param({9: 10, T1: 9, T2: 9}, [0, T0, 9], {}, 9, id="or do not"),
    ],
)
def test_each_rule(
    first_choice: Script, logits: dict[int, float], history: list[int], named: dict[str, Any], expected: int
) -> None:
    assert first_choice(logits, history, rules(1, sample_begin=1, **named)) == expected


def test_runs_of_random_logits_follow_the_rules(device: Device) -> None:
    rng = np.random.default_rng(5)
    n_positions, begins = 120, [[0], [1], [2], [3]]
    script = rng.standard_normal((n_positions, N_VOCAB)) * 4
    # Timestamps, which may not go back, are likeliest at a time that goes on.
    time, now = np.arange(N_VOCAB - BEGIN), 2 * np.arange(n_positions)[:, None]
    script[:, BEGIN:] += 6 - np.abs(time - now).clip(max=12)
    wanted = rules(
        n_positions - 1,
        sample_begin=1,
        no_timestamps=NO_TIMESTAMPS,
        limit=40,
        suppress=[EOT, 3, 4, 99],
        begin_suppress=[8],
    )
    chosen, likely = Scripted(device, script).choose(begins, wanted)
    parsed = Rules.parse(wanted, N_VOCAB)
    histories = [list(begin) for begin in begins]
    for position in range(n_positions - 1):
        logits = np.repeat(script[position : position + 1], len(begins), axis=0).astype(np.float32)
        expected, scores = parsed.choose(logits, histories)
        assert chosen[:, position].tolist() == expected
        assert np.abs(likely[:, position] - scores).max() < 2e-3
        for history, token in zip(histories, expected, strict=True):
            history.append(token)
    assert 20 < (chosen >= BEGIN).sum() / len(begins) < 80  # both kinds were chosen


def test_an_ended_sequence_goes_on_ending_until_all_have(device: Device) -> None:
    script = np.full((9, N_VOCAB), -4.0)
    script[[0, 1], [10, 11]] = 4
    script[2:, EOT] = 4
    wanted = rules(8, sample_begin=0, timestamp_begin=-1)
    decoder = Scripted(device, script)
    chosen, likely = decoder.choose([[1], [2]], wanted)
    assert chosen.tolist() == [[10, 11, EOT]] * 2  # and stops
    chosen, likely = decoder.choose([[1], [EOT]], wanted)
    assert chosen.tolist() == [[10, 11, EOT], [EOT, EOT, EOT]]
    assert likely[1].tolist() == [0, 0, 0] and (likely[0] < 0).all()


def test_rules_that_leave_nothing_are_refused(pair: Pair) -> None:
    for context in pair.contexts():
        context.set_input(RULES, rules(1, sample_begin=1, suppress=list(range(N_VOCAB))))
        with pytest.raises(ValueError, match="no token"):
            step(context, [1])
        with pytest.raises(ValueError, match="chosen"):
            context.get_output(CHOSEN)
        context.close()


@pytest.mark.parametrize("name", ["timestamps", "no-timestamps"])
def test_tiny_en_says_what_whisper_says(device: Device, shared: Path, name: str) -> None:
    checkpoint = load_checkpoint(shared / "models" / "tiny_en")
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
    heard: list[CrossMemory] = []
    graph = DecoderGraph(device, checkpoint, lambda context: heard[-1])
    for file in ("features-jfk.npz", "features-librispeech.npz"):
        features = np.load(shared / "expected" / file)
        clip = next(key for key in expected if key.endswith(str(features["clip"])))
        heard.append(cross_memory(device, checkpoint, features["audio_states"]))
        context = graph.init_execution_context({1: object()})
        context.set_input(AUDIO, np.array([1], np.int32))
        context.set_input(RULES, wanted)
        chosen, likely = [prompt[-1]], [0.0]
        new = prompt
        while chosen[-1] != 50256:
            step(context, new)
            chosen += context.get_output(CHOSEN)[0].tolist()
            likely += context.get_output(LOG_PROBABILITIES)[0].tolist()
            new = chosen[-1:]
        assert chosen[1:-1] == expected[clip]["tokens"]
        assert abs(sum(likely) / (len(likely) - 1) - expected[clip]["avg_logprob"]) < 2e-3
        context.close()
    graph.close()
