"""Shards on disk → training batches: utterances joined into windows with true timestamps, augmented, as tensors."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from tools.train import augment
from tools.train.features import FLOOR, N_MELS, Floats, whisper_scale
from tools.train.tokenizer import special_ids

CTC_SYMBOLS = " 'abcdefghijklmnopqrstuvwxyz"  # id 0 is the blank
TEACHER_STATES = 384
IGNORE = -100

Span = tuple[int, int, int, int]  # a sentence: first token, last token + 1, first frame, last frame + 1


@dataclass(frozen=True)
class Utterance:
    """One row of a shard."""

    text: str | None
    passage: str
    start: int  # frames into the shard
    frames: int
    mel: NDArray[np.float16]  # the shard's (n_frames, 80)
    states: NDArray[np.float16] | None  # the shard's (n_states, 384), None where the teacher has not been
    state_start: int

    def sound(self) -> Floats:
        """(frames, 80) log10 mel."""
        return np.asarray(self.mel[self.start : self.start + self.frames], dtype=np.float32)

    def target(self) -> Floats | None:
        """(frames // 2, 384) teacher's states."""
        if self.states is None:
            return None
        return np.asarray(self.states[self.state_start : self.state_start + self.frames // 2], dtype=np.float32)


def load_shard(mel_path: Path) -> list[Utterance]:
    """One shard's utterances; the arrays stay on disk."""
    mel = np.memmap(mel_path, dtype=np.float16, mode="r").reshape(-1, N_MELS)
    states_path = mel_path.with_suffix(".states")
    states = None
    if states_path.exists():
        states = np.memmap(states_path, dtype=np.float16, mode="r").reshape(-1, TEACHER_STATES)
    found, state_start = [], 0
    for line in mel_path.with_suffix(".jsonl").read_text().splitlines():
        row = json.loads(line)
        passage = f"{mel_path.stem}:{row['passage']}"
        found.append(Utterance(row["text"], passage, row["start"], row["frames"], mel, states, state_start))
        state_start += row["frames"] // 2
    return found


@dataclass
class Placed:
    """An utterance in a window: where it starts, and how much of it there is (all, unless the window ends first)."""

    utterance: Utterance
    start: int  # frames
    frames: int


@dataclass
class Example:
    """One window before batching."""

    mel: Floats  # (n_frames, 80), scaled
    tokens: list[int]  # prompt and text, <|endoftext|> at the end; empty where only the teacher says something
    n_prompt: int  # how many of `tokens` are given, not predicted
    ctc: list[int]
    spans: list[Span]
    states: list[tuple[int, Floats]]  # (first state, (n, 384)) of each utterance
    nospeech: int | None = None  # where no one speaks: the index of <|startoftranscript|>, whose target is <|nospeech|>


@dataclass
class Batch:
    """What one step of training sees; padded with mel zeros, <|endoftext|> and `IGNORE`."""

    mel: Tensor  # (batch, 80, n_frames)
    tokens: Tensor  # (batch, n)
    targets: Tensor  # (batch, n): the next token, or IGNORE
    ctc: Tensor  # (batch, n_ctc)
    ctc_lengths: Tensor  # (batch,): 0 where there is no text
    states: Tensor  # (batch, n_frames // 2, 384)
    heard: Tensor  # (batch, n_frames // 2): 1 where `states` holds something
    guide: Tensor  # (batch, n, n_frames // 2): how wrong it is for token n to look there, 0 to 1
    seconds: float  # of sound, padding not counted


@dataclass
class Stage:
    """What the windows are like for a part of training."""

    longest: int  # frames of the longest utterance
    joined: float  # share of windows that hold several utterances
    full: float  # share of windows padded to the whole window
    human: float  # share of windows that are unlabelled human speech
    silent: float  # share without speech
    frames: int  # of sound in a batch
    changed: float  # share of windows that are put into another room, noise, band
    prompts: float  # share of windows that are given what was said before, where there is any


class Examples:
    """Makes windows of utterances."""

    def __init__(self, tokenizer: Tokenizer, n_frames: int, seed: int, stage: Stage, sound: bool = True) -> None:
        """`sound` off leaves the mel at zeros: for a decoder that learns from the teacher's states."""
        self.tokenizer = tokenizer
        self.ids = special_ids(tokenizer)
        self.n_frames = n_frames
        self.sound = sound
        self.stage = stage
        self.rng = np.random.default_rng(seed)
        self.encoded: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Text with the space before it that every segment has."""
        if text not in self.encoded:
            self.encoded[text] = self.tokenizer.encode(" " + text).ids
        return self.encoded[text]

    def stamp(self, frame: int) -> int:
        """A frame's timestamp token."""
        return self.ids["timestamp_begin"] + min(frame, self.n_frames) // 2

    def place(self, utterances: list[Utterance], offset: int, gaps: bool) -> list[Placed]:
        """Utterances one after another from frame `offset`, cut where the window ends."""
        placed, at = [], offset // 2 * 2
        for utterance in utterances:
            room = self.n_frames - at
            if room < 20:
                break
            placed.append(Placed(utterance, at, min(utterance.frames, room)))
            at += utterance.frames + (int(self.rng.integers(5, 70)) if gaps else 0)
            at = (at + 1) // 2 * 2
        return placed

    def example(self, placed: list[Placed], full: bool, before: list[Utterance]) -> Example:
        """A window of placed utterances. `full` pads it to the whole window, `before` may be given as the prompt."""
        rng = self.rng
        end = max(part.start + part.frames for part in placed)
        ends_with_cut = end >= self.n_frames
        content = self.n_frames if ends_with_cut else min(self.n_frames, end + int(rng.integers(0, 60)))
        mel = self.mel(placed, content, full and not ends_with_cut)
        states = []
        for part in placed:
            target = part.utterance.target()
            if target is not None:
                states.append((part.start // 2, target[: part.frames // 2]))
        if placed[0].utterance.text is None:
            return Example(mel, [], 0, [], [], states)
        tokens, n_prompt, spans = self.tokens(placed, before)
        spoken = " ".join(self.cut_text(part) for part in placed)
        ctc = [CTC_SYMBOLS.index(letter) + 1 for letter in spoken.lower().replace("-", " ") if letter in CTC_SYMBOLS]
        return Example(mel, tokens, n_prompt, ctc, spans, states)

    def mel(self, placed: list[Placed], content: int, full: bool) -> Floats:
        """(content, 80) scaled and augmented log-mel of a window, padded where it is to be `full`."""
        if not self.sound:
            return np.zeros((self.n_frames if full else content, N_MELS), dtype=np.float32)
        raw = np.full((content, N_MELS), FLOOR, dtype=np.float32)
        for part in placed:
            raw[part.start : part.start + part.frames] = part.utterance.sound()[: part.frames]
        changed = self.rng.random() < self.stage.changed
        mel = self.padded(augment.augment(raw, self.rng) if changed else raw, full)
        if changed and self.rng.random() < 0.5:
            mel[:content] = augment.spec_augment(mel[:content], self.rng)
        return mel

    def padded(self, raw: Floats, full: bool) -> Floats:
        """Raw window → scaled; padded to the window with mel zeros, as Whisper's `transcribe`, or silence."""
        if full and self.rng.random() < 0.33:
            raw = np.concatenate([raw, np.full((self.n_frames - len(raw), N_MELS), FLOOR, dtype=np.float32)])
        mel = whisper_scale(raw)
        if full and len(mel) < self.n_frames:
            mel = np.concatenate([mel, np.zeros((self.n_frames - len(mel), N_MELS), dtype=np.float32)])
        return mel

    @staticmethod
    def cut_text(part: Placed) -> str:
        """The words of a placed utterance that are in the window: all, or by length the share that was heard."""
        text = part.utterance.text or ""
        if part.frames == part.utterance.frames:
            return text
        words = text.split()
        heard = part.frames / part.utterance.frames * len(text)
        kept: list[str] = []
        for word in words:
            if len(" ".join([*kept, word])) > heard:
                break
            kept.append(word)
        return " ".join(kept)

    def tokens(self, placed: list[Placed], before: list[Utterance]) -> tuple[list[int], int, list[Span]]:
        """A window's token ids, how many of them are the prompt, and where each sentence is in tokens and frames."""
        rng, ids = self.rng, self.ids
        prompt = self.prompt(before)
        timestamps = rng.random() < 0.55
        found = [*prompt, ids["startoftranscript"]]
        if not timestamps:
            found.append(ids["notimestamps"])
        n_prompt = len(found)
        spans = []
        for part in placed:
            text = self.encode(self.cut_text(part)) if self.cut_text(part) else []
            if not text:
                continue
            if timestamps:
                found.append(self.stamp(part.start))
            spans.append((len(found), len(found) + len(text), part.start, part.start + part.frames))
            found.extend(text)
            if timestamps and part.frames == part.utterance.frames:
                found.append(self.stamp(part.start + part.frames))
        return [*found, ids["endoftext"]], n_prompt, spans

    def silence(self, longest: int, before: list[Utterance]) -> Example:
        """A window where nobody speaks: silence, hum or noise at any level.

        As Whisper learned it, <|startoftranscript|> is followed by <|nospeech|>, which decoding never chooses but reads
        as `no_speech_prob`. What is then chosen must still be empty text: <|0.00|> and the end, or, without timestamps,
        where decoding forbids an immediate end, a line break and the end.
        """
        rng, ids = self.rng, self.ids
        full = longest >= self.n_frames and rng.random() < 0.7
        n_frames = int(rng.integers(min(90, longest), longest + 1)) // 2 * 2
        raw = np.full((n_frames, N_MELS), FLOOR, dtype=np.float32)
        if rng.random() < 0.8:
            raw = np.log10(np.maximum(augment.noise(rng, n_frames), 1e-6)) - np.float32(rng.uniform(0.0, 8.0))
        mel = self.padded(np.maximum(raw, FLOOR), full)
        prompt = self.prompt(before)
        start = [*prompt, ids["startoftranscript"]]
        if rng.random() < 0.6:
            tokens, n_prompt = [*start, ids["timestamp_begin"], ids["endoftext"]], len(start) + 1
        else:
            blank = self.tokenizer.encode("\n").ids
            tokens, n_prompt = [*start, ids["notimestamps"], *blank, ids["endoftext"]], len(start) + 1
        return Example(mel, tokens, n_prompt, [], [], [], nospeech=len(prompt))

    def prompt(self, before: list[Utterance]) -> list[int]:
        """Nothing, or as often as the stage says what was said before, as `condition_on_previous_text` gives it."""
        if not before or self.rng.random() >= self.stage.prompts:
            return []
        earlier = [token for utterance in before for token in self.encode(utterance.text or "")]
        return [self.ids["startofprev"], *earlier[-100:]]


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
    heard = np.zeros((size, n_frames // 2), dtype=np.float32)
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


def batches(folder: Path, examples: Examples) -> Iterator[Batch]:
    """Endless batches of similar lengths from every shard that is complete when a round begins."""
    while True:
        spoken: list[Utterance] = []
        human: list[Utterance] = []
        for path in sorted(folder.glob("*.mel")):
            if path.with_suffix(".states").exists():
                (human if path.stem == "human" else spoken).extend(load_shard(path))
        yield from one_round(examples, spoken, human)


def one_round(examples: Examples, spoken: list[Utterance], human: list[Utterance]) -> Iterator[Batch]:
    """Each utterance of the right length once, some followed by their passage, in batches of similar lengths."""
    rng, stage = examples.rng, examples.stage
    plans: list[tuple[int, int, bool]] = []  # (length, index, full window)
    for index in rng.permutation(len(spoken)):
        if spoken[index].frames <= stage.longest:
            many = rng.random() < stage.joined
            full = many or rng.random() < stage.full
            length = examples.n_frames if full else spoken[index].frames
            plans.append((length, -int(index) - 1 if many else int(index), full))
    pools = [plans[start : start + 800] for start in range(0, len(plans), 800)]
    for pool in pools:
        groups: list[list[tuple[int, int, bool]]] = [[]]
        for plan in sorted(pool):
            if (len(groups[-1]) + 1) * plan[0] > stage.frames and groups[-1]:
                groups.append([])
            groups[-1].append(plan)
        for number in rng.permutation(len(groups)):
            group = groups[number]
            made = [plan_example(examples, spoken, *plan[1:]) for plan in group]
            for _ in range(rng.binomial(max(1, len(group)), stage.human) if human else 0):
                piece = human[int(rng.integers(len(human)))]
                if group[0][2] or piece.frames <= group[-1][0] + 100:
                    placed = examples.place([piece], int(rng.integers(0, 20)), False)
                else:
                    placed = [Placed(replace(piece, text=None), 0, group[-1][0] // 2 * 2)]
                made.append(examples.example(placed, group[0][2], []))
            if rng.random() < stage.silent * len(group):
                made.append(examples.silence(group[-1][0], [spoken[int(rng.integers(len(spoken)))]] if spoken else []))
            yield collate(made, examples.ids)


def plan_example(examples: Examples, spoken: list[Utterance], index: int, full: bool) -> Example:
    """Index ≥ 0 → that utterance alone; below → utterance −index − 1 and what follows it in its passage."""
    rng = examples.rng
    many = index < 0
    index = index if index >= 0 else -index - 1
    passage = spoken[index].passage
    first = index
    while first > 0 and spoken[first - 1].passage == passage:
        first -= 1
    following = [spoken[index]]
    while many and index + len(following) < len(spoken) and spoken[index + len(following)].passage == passage:
        following.append(spoken[index + len(following)])
    offset = 0
    if rng.random() < 0.5:
        offset = int(rng.integers(0, max(1, min(150 if full else 40, examples.n_frames - spoken[index].frames - 10))))
    return examples.example(examples.place(following, offset, True), full, spoken[first:index])
