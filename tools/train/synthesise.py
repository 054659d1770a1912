"""Text → shards of spoken utterances on disk, and a held-out test set of WAV files with a manifest.

A shard is `shard-NNN.mel` ((n_frames, 80) f16, `log10_mel`'s output end to end) and `shard-NNN.jsonl`, a line an
utterance: `{"text", "voice", "passage", "start", "frames"}`. Utterances of one passage follow each other in reading
order, in one voice.
"""

import argparse
import functools
import json
import logging
import random
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from tools.train import text, voices
from tools.train.features import FRAMES_PER_SECOND, SAMPLE_RATE, log10_mel

PASSAGES_PER_SHARD = 200  # about 1,000 utterances, 1 hour
MAX_FRAMES = 980  # an utterance longer than this would not fit a 10 s window


def spoken_form(words: str) -> str:
    """What the synthesisers are given: hyphens as spaces, so that none of them says "minus"."""
    return re.sub(r"\s+", " ", words.replace("-", " ")).strip()


def make_shard(folder: Path, text_folder: Path, number: int) -> int:
    """Write shard `number`; returns its frames. The same number always gives the same shard."""
    passages = text.passages(text.read_corpus(text_folder), random.Random(0))
    rng = random.Random(1000 + number)
    first = number * PASSAGES_PER_SHARD
    total = 0
    lines: list[str] = []
    with (folder / f"shard-{number:03d}.tmp").open("wb") as mel_file:
        for index in range(first, first + PASSAGES_PER_SHARD):
            passage = [line for line in passages[index % len(passages)] if not text.is_held_out(line)]
            voice = voices.choose(rng)
            for line, audio in zip(passage, voices.speak([spoken_form(line) for line in passage], voice), strict=True):
                mel = log10_mel(audio)
                if not 30 <= len(mel) <= MAX_FRAMES:
                    continue
                mel_file.write(mel.astype(np.float16).tobytes())
                row = {"text": line, "voice": voice.label(), "passage": index, "start": total, "frames": len(mel)}
                lines.append(json.dumps(row))
                total += len(mel)
    (folder / f"shard-{number:03d}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / f"shard-{number:03d}.tmp").rename(folder / f"shard-{number:03d}.mel")
    return total


def make_test_set(folder: Path, text_folder: Path, count: int) -> None:
    """`count` utterances no training shard has, in voices no training shard has: WAV files and `manifest.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    lines = [line for passage in text.passages(text.read_corpus(text_folder), random.Random(0)) for line in passage]
    held_out = sorted({line for line in lines if text.is_held_out(line) and len(line.split()) > 3})
    rows = []
    for number, line in enumerate(rng.sample(held_out, count)):
        voice = voices.choose(rng, held_out=True)
        audio = voices.speak([spoken_form(line)], voice)[0]
        gap = np.zeros(SAMPLE_RATE // 4, dtype=np.float32)
        soundfile.write(folder / f"{number:04d}.wav", np.concatenate([gap, audio, gap]), SAMPLE_RATE, subtype="PCM_16")
        rows.append(json.dumps({"audio": f"{number:04d}.wav", "text": line, "voice": voice.label()}))
    (folder / "manifest.jsonl").write_text("\n".join(rows) + "\n")


def main() -> None:
    """`python -m tools.train.synthesise --text FOLDER --out FOLDER --shards 24`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder of public-domain .txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards; a shard that is there is kept")
    parser.add_argument("--shards", type=int, default=24, help="how many shards of about an hour")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--test", type=int, default=300, help="utterances in the held-out test set, OUT/test")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "test" / "manifest.jsonl").exists():
        make_test_set(options.out / "test", options.text, options.test)
    missing = [number for number in range(options.shards) if not (options.out / f"shard-{number:03d}.mel").exists()]
    with ProcessPoolExecutor(options.jobs) as pool:
        frames_of = pool.map(functools.partial(make_shard, options.out, options.text), missing)
        for number, frames in zip(missing, frames_of, strict=True):
            logging.info("shard %d: %.1f minutes", number, frames / FRAMES_PER_SECOND / 60)


if __name__ == "__main__":
    main()
