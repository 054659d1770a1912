"""Where each word of the human clips' texts is: a trained CTC head's best path through the text.

A text comes from `human.tsv` (clip, tab, words) where it has the clip, else from the teacher's guess. Words the sound
does not bear out become one nameless word, which says that somebody speaks there and nobody knows what.
"""

import argparse
import itertools
import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.train.features import Floats, whisper_scale
from tools.train.model import Dims
from tools.train.shards import Utterance, Word, load_shard
from tools.train.student import Student
from tools.train.windows import CTC_SYMBOLS

TEXTS = Path(__file__).parent / "human.tsv"
LEAST_SCORE = -2.5  # mean log-probability of the letters around a word, below which it is not believed
AROUND = 2  # words before and after that count with it, for what is heard badly but sits right is worth learning
SLOWEST = 12  # states a letter; a word spoken slower than this, and half a second, is in the wrong place
LONGEST_GAP = 45  # states between two words; a longer one holds something that nobody wrote down
LEAD, TAIL = 3, 4  # states by which a letter's peak comes after its start and before its end


def spelled(word: str) -> list[int]:
    """A word's letters as CTC symbols."""
    return [CTC_SYMBOLS.index(letter) + 1 for letter in word.lower() if letter in CTC_SYMBOLS[1:]]


def best_path(log_probs: Floats, symbols: list[int]) -> tuple[list[int], Floats]:
    """(n_states, n_symbols) and a text → the state of each of its symbols, and that symbol's log-probability there.

    Raises ValueError where the text is longer than the sound.
    """
    extended = np.zeros(2 * len(symbols) + 1, dtype=np.int64)
    extended[1::2] = symbols
    may_skip = np.zeros(len(extended), dtype=bool)
    may_skip[3::2] = extended[3::2] != extended[1:-2:2]
    scores = np.full(len(extended), -np.inf)
    scores[:2] = log_probs[0, extended[:2]]
    moves = np.zeros((len(log_probs), len(extended)), dtype=np.int8)
    for state in range(1, len(log_probs)):
        one = np.concatenate([[-np.inf], scores[:-1]])
        two = np.where(may_skip, np.concatenate([[-np.inf, -np.inf], scores[:-2]]), -np.inf)
        choices = np.stack([scores, one, two])
        moves[state] = choices.argmax(axis=0)
        scores = choices.max(axis=0) + log_probs[state, extended]
    at = len(extended) - 1 if scores[-1] >= scores[-2] else len(extended) - 2
    if not np.isfinite(scores[at]):
        raise ValueError(f"{len(symbols)} letters do not fit {len(log_probs)} states")
    states = np.full(len(symbols), -1)
    peaks = np.full(len(symbols), -np.inf, dtype=np.float32)
    for state in range(len(log_probs) - 1, -1, -1):
        if at % 2 and log_probs[state, extended[at]] >= peaks[at // 2]:
            states[at // 2], peaks[at // 2] = state, log_probs[state, extended[at]]
        at -= int(moves[state, at])
    return states.tolist(), peaks


@torch.no_grad()  # type: ignore[untyped-decorator]
def heard(student: Student, utterance: Utterance) -> Floats:
    """(n_states, n_symbols) log-probabilities; a clip longer than the window is heard as its begin and its end."""
    mel = torch.from_numpy(whisper_scale(utterance.sound())).T[None]
    window = 2 * student.model.dims.n_audio_ctx
    n_states, half = utterance.frames // 2, utterance.frames // 4

    def log_probs(part: Tensor) -> Tensor:
        return student.ctc(student.model.encoder(part)).float().log_softmax(dim=-1)[0]

    if utterance.frames <= window:
        return np.asarray(log_probs(mel[..., : 2 * n_states]).numpy())
    begin, end = log_probs(mel[..., :window]), log_probs(mel[..., 2 * n_states - window : 2 * n_states])
    return np.asarray(torch.cat([begin[:half], end[half - n_states :]]).numpy())


def timed(text: str, log_probs: Floats) -> list[Word]:
    """A text → its words with the frames where they are, those that are not believed nameless."""
    words = [word for word in text.split() if spelled(word)]
    symbols: list[int] = []
    ranges = []
    for word in words:
        symbols += [1] if symbols else []
        ranges.append((len(symbols), len(symbols) + len(spelled(word))))
        symbols += spelled(word)
    states, peaks = best_path(log_probs, symbols)
    found: list[Word] = []
    for index, (word, (first, last)) in enumerate(zip(words, ranges, strict=True)):
        begin, end = max(0, states[first] - LEAD), min(len(log_probs), states[last - 1] + TAIL)
        around = ranges[max(0, index - AROUND)][0], ranges[min(len(ranges) - 1, index + AROUND)][1]
        believed = float(peaks[slice(*around)].mean()) > LEAST_SCORE and end - begin < 25 + SLOWEST * (last - first)
        found.append((word if believed else "", 2 * begin, 2 * end))
    return with_gaps(found, 2 * len(log_probs))


def with_gaps(words: list[Word], n_frames: int) -> list[Word]:
    """The words with a nameless one in every long gap, so that no stretch counts as silent that may not be."""
    marked: list[Word] = []
    for word, following in itertools.pairwise([("", 0, 0), *words, ("", n_frames, n_frames)]):
        marked.append(word)
        if following[1] - word[2] > 2 * LONGEST_GAP:
            marked.append(("", word[2], following[1]))
    return [word for word in marked if word[2] > word[1]]


def main() -> None:
    """`python -m tools.train.align --data FOLDER --state FILE`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the shards' folder; human.jsonl is rewritten")
    parser.add_argument("--state", type=Path, required=True, help="state.pt of the encoder's run, or the joint one's")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    saved = torch.load(options.state, map_location="cpu")
    student = Student(Dims(**saved["dims"]))
    student.load_state_dict(saved["average"])
    student.eval()
    texts = dict(line.split("\t") for line in TEXTS.read_text(encoding="utf-8").splitlines()) if TEXTS.exists() else {}
    path = options.data / "human.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    n_known = n_words = 0
    for row, utterance in zip(rows, load_shard(options.data / "human.mel"), strict=True):
        text = texts.get(row["passage"], row.get("guess"))
        if text:
            row["words"] = timed(text, heard(student, utterance))
            n_words += len(row["words"])
            n_known += sum(bool(word) for word, _, _ in row["words"])
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    logging.info("%d of %d words are known and placed", n_known, n_words)


if __name__ == "__main__":
    main()
