"""Windows for training: utterances joined with true timestamps, augmented, with what is to be said about them."""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from tools.train import augment
from tools.train.features import FLOOR, N_MELS, Floats, whisper_scale
from tools.train.shards import Utterance
from tools.train.tokenizer import special_ids

CTC_SYMBOLS = " 'abcdefghijklmnopqrstuvwxyz"  # id 0 is the blank

Span = tuple[int, int, int, int]  # a sentence: first token, last token + 1, first frame, last frame + 1


@dataclass
class Placed:
    """An utterance in a window: where it starts, and how much of it there is (all, unless the window ends first)."""

    utterance: Utterance
    start: int  # frames
    frames: int

    def text(self) -> str:
        """The words of it that are in the window."""
        return self.utterance.text_until(self.frames)


@dataclass
class Example:
    """One window before batching."""

    mel: Floats  # (n_frames, 80), scaled
    tokens: list[int]  # prompt and text, <|endoftext|> at the end; empty where only the teacher says something
    n_prompt: int  # how many of `tokens` are given, not predicted
    ctc: list[int]
    spans: list[Span]
    states: list[tuple[int, Floats]]  # (first state, (n, 384)) of each utterance
    untaught: tuple[tuple[int, int], ...] = ()  # (first state, how many) of each that the teacher has not heard
    nospeech: int | None = None  # where no one speaks: the index of <|startoftranscript|>, whose target is <|nospeech|>


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
        states, untaught = [], []
        for part in placed:
            target = part.utterance.target()
            if target is None:
                untaught.append((part.start // 2, part.frames // 2))
            else:
                states.append((part.start // 2, target[: part.frames // 2]))
        if placed[0].utterance.text is None:
            return Example(mel, [], 0, [], [], states, tuple(untaught))
        tokens, n_prompt, spans = self.tokens(placed, before)
        spoken = " ".join(part.text() for part in placed)
        ctc = [CTC_SYMBOLS.index(letter) + 1 for letter in spoken.lower().replace("-", " ") if letter in CTC_SYMBOLS]
        return Example(mel, tokens, n_prompt, ctc, spans, states, tuple(untaught))

    def mel(self, placed: list[Placed], content: int, full: bool) -> Floats:
        """(content, 80) scaled and augmented log-mel of a window, padded where it is to be `full`."""
        if not self.sound:
            return np.zeros((self.n_frames if full else content, N_MELS), dtype=np.float32)
        raw = np.full((content, N_MELS), FLOOR, dtype=np.float32)
        for part in placed:
            raw[part.start : part.start + part.frames] = part.utterance.sound()[: part.frames]
        changed = self.rng.random() < self.stage.changed
        mel = self.padded(augment.augment(raw, self.rng) if changed else raw, full)
        if changed and self.rng.random() < 0.3:
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
            text = self.encode(part.text()) if part.text() else []
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
            power = augment.noise(rng, n_frames)
            if rng.random() < 0.7:
                power = power * np.float32(10.0 ** rng.uniform(-5.0, 0.5)) + augment.hum(rng, n_frames)
            raw = np.log10(np.maximum(power, 1e-6)) - np.float32(rng.uniform(0.0, 8.0))
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
