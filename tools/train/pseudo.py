"""What the teacher makes of the human clips: a guess of each one's words, by the product itself, for `align.py`."""

import argparse
import json
import logging
from pathlib import Path

from service.transcription.transcriber import Options
from tools.wer import Clip, transcribe


def main() -> None:
    """`python -m tools.train.pseudo --model FOLDER --data FOLDER --clips FOLDER`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder of the teacher")
    parser.add_argument("--data", type=Path, required=True, help="the shards' folder; human.jsonl is rewritten")
    parser.add_argument("--clips", type=Path, required=True, help="folder of the clips that human.jsonl names")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = options.data / "human.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    clips = [Clip(options.clips / f"{row['passage']}.flac", "") for row in rows]
    guesses = transcribe(clips, {"model": options.model, "target": "cpu"}, Options(temperature=(0.0,)))
    rows = [row | {"guess": guess} for row, guess in zip(rows, guesses, strict=True)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    logging.info("%d of %d clips have a guess", sum(bool(guess) for guess in guesses), len(rows))


if __name__ == "__main__":
    main()
