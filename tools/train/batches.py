"""Windows → training batches of similar lengths, as tensors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.train.features import N_MELS
from tools.train.shards import TEACHER_STATES, Utterance, load_shard
from tools.train.windows import Example, Examples, Stage

IGNORE = -100
POOL = 800  # windows that are sorted by length at a time
TEMPO = (0.87, 1.15)
RUNS_ON = 0.4  # share of the windows with people in which they speak on past the window's end
OVER = 300  # frames
SILENCE_MATTERS = 0.2  # what the states are where nobody speaks, beside 1 for where somebody does


@dataclass
class Batch:
    """What one step of training sees; padded with mel zeros, <|endoftext|> and `IGNORE`."""

    mel: Tensor  # (batch, 80, n_frames)
    tokens: Tensor  # (batch, n)
    targets: Tensor  # (batch, n): the next token, or IGNORE
    ctc: Tensor  # (batch, n_ctc)
    ctc_lengths: Tensor  # (batch,): 0 where there is no text
    states: Tensor  # (batch, n_frames // 2, 384)
    heard: Tensor  # (batch, n_frames // 2): how much `states` matters there, 0 where the teacher has not listened
    guide: Tensor  # (batch, n, n_frames // 2): how wrong it is for token n to look there, 0 to 1
    seconds: float  # of sound, padding not counted


def collate(examples: list[Example], ids: dict[str, int]) -> Batch:
    """Windows → one batch, padded to the longest."""
    size = len(examples)
    n_frames = (max(len(example.mel) for example in examples) + 1) // 2 * 2
    n_tokens = max(2, *(len(example.tokens) for example in examples)) - 1
    n_ctc = max(1, *(len(example.ctc) for example in examples))
    mel = np.zeros((size, n_frames, N_MELS), dtype=np.float32)
    tokens = np.full((size, n_tokens), ids["endoftext"], dtype=np.int64)
    targets = np.full((size, n_tokens), IGNORE, dtype=np.int64)
    ctc = np.zeros((size, n_ctc), dtype=np.int64)
    states = np.zeros((size, n_frames // 2, TEACHER_STATES), dtype=np.float32)
    heard = np.full((size, n_frames // 2), SILENCE_MATTERS, dtype=np.float32)
    guide = np.zeros((size, n_tokens, n_frames // 2), dtype=np.float32)
    seconds = 0.0
    for row, example in enumerate(examples):
        mel[row, : len(example.mel)] = example.mel
        seconds += len(example.mel) / 100
        if example.tokens:
            given = example.tokens[:-1]
            tokens[row, : len(given)] = given
            targets[row, example.n_prompt - 1 : len(given)] = example.tokens[example.n_prompt :]
        if example.nospeech is not None:
            targets[row, example.nospeech] = ids["nospeech"]
        ctc[row, : len(example.ctc)] = example.ctc
        for start, length in example.untaught:
            heard[row, start : start + length] = 0.0
        for start, target in example.states:
            target = target[: n_frames // 2 - start]
            states[row, start : start + len(target)] = target
            heard[row, start : start + len(target)] = 1.0
        for first, last, begin, end in example.spans:
            # The query that predicts token n is at n − 1; it should look where the sentence is n / (all) through.
            expected = begin / 2 + (np.arange(last - first) + 0.5) / (last - first) * (end - begin) / 2
            distance = (np.arange(n_frames // 2)[None] - expected[:, None]) / 25.0  # half a second is one deviation
            guide[row, first - 1 : last - 1] = 1.0 - np.exp(-0.5 * distance**2)
    lengths = torch.tensor([len(example.ctc) for example in examples])
    return Batch(
        mel=torch.from_numpy(mel.transpose(0, 2, 1).copy()),
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        ctc=torch.from_numpy(ctc),
        ctc_lengths=lengths,
        states=torch.from_numpy(states),
        heard=torch.from_numpy(heard),
        guide=torch.from_numpy(guide),
        seconds=seconds,
    )


@dataclass(frozen=True)
class Plan:
    """A window to be made."""

    length: int  # frames, roughly
    pieces: tuple[Utterance, ...]
    before: tuple[Utterance, ...] = ()  # what was said before, of the same passage
    full: bool = False  # padded to the whole window
    joined: bool = False  # the pieces follow each other without a gap, as they were recorded


def batches(folder: Path, examples: Examples) -> Iterator[Batch]:
    """Endless batches of similar lengths from every shard that is complete when a round begins."""
    while True:
        spoken: list[Utterance] = []
        human: list[Utterance] = []
        for path in sorted(folder.glob("*.mel")):
            if examples.sound or path.with_suffix(".states").exists():
                (human if path.stem == "human" else spoken).extend(load_shard(path))
        yield from one_round(examples, spoken, human)


def one_round(examples: Examples, spoken: list[Utterance], human: list[Utterance]) -> Iterator[Batch]:
    """Each utterance of the right length once, some followed by their passage, and parts of human clips among them."""
    rng, stage = examples.rng, examples.stage
    plans = [spoken_plan(examples, spoken, index) for index in range(len(spoken)) if fits(stage, spoken[index])]
    n_human = round(len(plans) * stage.human / (1 - stage.human)) if human else 0
    plans += [human_plan(examples, human[int(index)]) for index in rng.integers(0, max(1, len(human)), n_human)]
    order = [plans[int(index)] for index in rng.permutation(len(plans))]
    for start in range(0, len(order), POOL):
        groups: list[list[Plan]] = [[]]
        for plan in sorted(order[start : start + POOL], key=lambda plan: plan.length):
            if (len(groups[-1]) + 1) * plan.length > stage.frames and groups[-1]:
                groups.append([])
            groups[-1].append(plan)
        for number in rng.permutation(len(groups)):
            group = groups[number]
            made = [make(examples, plan) for plan in group]
            if rng.random() < stage.silent * len(group):
                before = [spoken[int(rng.integers(len(spoken)))]] if spoken else []
                made.append(examples.silence(group[-1].length, before))
            yield collate(made, examples.ids)


def fits(stage: Stage, utterance: Utterance) -> bool:
    """Whether the stage takes an utterance that long."""
    return utterance.frames <= stage.longest


def spoken_plan(examples: Examples, spoken: list[Utterance], index: int) -> Plan:
    """An utterance, sometimes with what follows it in its passage."""
    rng, stage = examples.rng, examples.stage
    passage = spoken[index].passage
    many = rng.random() < stage.joined
    full = many or rng.random() < stage.full
    first, last = index, index + 1
    while first > 0 and spoken[first - 1].passage == passage:
        first -= 1
    while many and last < len(spoken) and spoken[last].passage == passage:
        last += 1
    length = examples.n_frames if full else spoken[index].frames
    return Plan(length, tuple(spoken[index:last]), tuple(spoken[first:index]), full)


def human_plan(examples: Examples, clip: Utterance) -> Plan:
    """A part of a clip, or from some word on as much as a window holds, and cuts."""
    rng, stage = examples.rng, examples.stage
    runs_on = stage.longest >= examples.n_frames - 20 and rng.random() < RUNS_ON
    parts = clip.crop(rng, min(stage.longest, clip.frames), OVER if runs_on else 0)
    frames = sum(part.frames for part in parts)
    full = frames > stage.longest or rng.random() < stage.full
    return Plan(examples.n_frames if full else frames, tuple(parts), (), full, joined=True)


def make(examples: Examples, plan: Plan) -> Example:
    """The window of a plan, its utterances somewhere in it, some spoken slower or faster."""
    rng = examples.rng
    pieces = list(plan.pieces)
    frames = sum(piece.frames for piece in pieces) if plan.joined else max(piece.frames for piece in pieces)
    room = examples.n_frames - 20
    if rng.random() < examples.stage.changed:
        factor = float(rng.uniform(*TEMPO))
        factor = factor if frames > room else min(factor, room / frames)
        pieces = [piece.stretched(factor) for piece in pieces]
    offset = 0
    if rng.random() < 0.5:
        offset = int(rng.integers(0, max(1, min(150 if plan.full else 40, examples.n_frames - pieces[0].frames - 10))))
    placed = examples.place(pieces, offset, not plan.joined)
    return examples.example(placed, plan.full, list(plan.before))
