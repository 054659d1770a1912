"""Utterances in the shards on disk, and what may be made of one: a part of it, or the same spoken slower or faster."""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.train.features import N_MELS, Floats

TEACHER_STATES = 384
PAUSE = 30  # frames between two words, from which on they may be in two segments

Word = tuple[str, int, int]  # as written, "" where nobody knows; first frame, last frame + 1, in its utterance


@dataclass(frozen=True)
class Utterance:
    """One row of a shard."""

    text: str | None
    passage: str
    start: int  # frames into `mel`
    frames: int
    mel: NDArray[np.float16]  # the shard's (n_frames, 80)
    states: NDArray[np.float16] | None  # the shard's (n_states, 384), None where the teacher has not been
    state_start: int
    words: tuple[Word, ...] = ()  # where each word is, if that is known

    def sound(self) -> Floats:
        """(frames, 80) log10 mel."""
        return np.asarray(self.mel[self.start : self.start + self.frames], dtype=np.float32)

    def target(self) -> Floats | None:
        """(frames // 2, 384) teacher's states."""
        if self.states is None:
            return None
        return np.asarray(self.states[self.state_start : self.state_start + self.frames // 2], dtype=np.float32)

    def part(self, first: int, last: int, words: tuple[Word, ...]) -> "Utterance":
        """Frames `first` to `last`, where `words` are said; `first` is made even, as a state is two frames."""
        first -= first % 2
        start, state_start = self.start + first, self.state_start + first // 2
        text = " ".join(word for word, _, _ in words) or None
        words = tuple((word, begin - first, end - first) for word, begin, end in words)
        return replace(self, text=text, start=start, frames=last - first, state_start=state_start, words=words)

    def crop(self, rng: np.random.Generator, longest: int, over: int = 0) -> list["Utterance"]:
        """A random part of at most `longest` + `over` frames, cut again at its pauses.

        Whole words where they are known, else any stretch, unwritten. What is `over` is for the window's end to cut.
        """
        wanted = int(rng.integers(min(120, longest), longest + 1)) if not over else longest + over
        known = [index for index, (word, _, _) in enumerate(self.words) if word]
        if not known:
            first = int(rng.integers(0, max(1, self.frames - wanted)))
            return [self.part(first, min(self.frames, first + wanted), ())]
        begin = int(rng.choice(known))
        end, wanted = begin + 1, wanted - 40  # for the pauses around it
        while end < len(self.words) and self.words[end][0] and self.words[end][2] - self.words[begin][1] <= wanted:
            end += 1
        while begin > 0 and self.words[begin - 1][0] and self.words[end - 1][2] - self.words[begin - 1][1] <= wanted:
            begin -= 1
        before = self.words[begin - 1][2] if begin else 0
        first = min(self.words[begin][1], max(before, self.words[begin][1] - 30))
        # It ends in the pause before the next word, or with the recording.
        after = self.words[end][1] if end < len(self.words) else self.frames
        last = min(max(after, self.words[end - 1][2]), self.words[end - 1][2] + 30, first + longest + over)
        joints = [first, *self.pauses(begin, end), last]
        return [
            self.part(start, stop, tuple(word for word in self.words[begin:end] if start <= word[1] < stop))
            for start, stop in itertools.pairwise(joints)
        ]

    def pauses(self, begin: int, end: int) -> list[int]:
        """The middle frame of every pause between words `begin` and `end`, where a new segment may begin."""
        between = itertools.pairwise(self.words[begin:end])
        return [(one[2] + other[1]) // 4 * 2 for one, other in between if other[1] - one[2] >= PAUSE]

    def text_until(self, frame: int) -> str:
        """What is said before a frame: whole words, or by its length a share of the text where nobody knows."""
        if frame >= self.frames:
            return self.text or ""
        if self.words:
            return " ".join(word for word, _, end in self.words if end <= frame)
        heard = frame / self.frames * len(self.text or "")
        kept: list[str] = []
        for word in (self.text or "").split():
            if len(" ".join([*kept, word])) > heard:
                break
            kept.append(word)
        return " ".join(kept)

    def stretched(self, factor: float) -> "Utterance":
        """The same with `factor` times as many frames, its states moved along."""
        sound, target = self.sound(), self.target()
        frames = round(self.frames * factor)
        mel = stretch(sound, frames).astype(np.float16)
        states = None if target is None else stretch(target, frames // 2).astype(np.float16)
        words = tuple((word, round(begin * factor), round(end * factor)) for word, begin, end in self.words)
        return replace(self, start=0, frames=frames, mel=mel, states=states, state_start=0, words=words)


def stretch(rows: Floats, length: int) -> Floats:
    """(n, width) → (length, width), interpolated along the first axis."""
    at = np.clip((np.arange(length, dtype=np.float32) + 0.5) * (len(rows) / length) - 0.5, 0, len(rows) - 1)
    below = at.astype(np.int64)
    above = np.minimum(below + 1, len(rows) - 1)
    share = (at - below)[:, None].astype(np.float32)
    return np.asarray(rows[below] * (1 - share) + rows[above] * share, dtype=np.float32)


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
        words = tuple((str(word), int(first), int(last)) for word, first, last in row.get("words", ()))
        found.append(Utterance(row["text"], passage, row["start"], row["frames"], mel, states, state_start, words))
        state_start += row["frames"] // 2
    return found
