"""What the teacher makes of the unlabelled human clips: texts for the joint run, where the teacher was sure."""

import argparse
import json
import logging
from pathlib import Path

import torch

from tools.train.data import load_shard
from tools.train.decode import Transcriber
from tools.train.features import FLOOR, N_MELS, whisper_scale

BATCH = 16
WINDOW = 1100  # frames given to the teacher: the longest piece and a second of silence


def main() -> None:
    """`python -m tools.train.pseudo --model FOLDER --data FOLDER`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of the teacher")
    parser.add_argument("--data", type=Path, required=True, help="the shards' folder; human.jsonl is rewritten")
    parser.add_argument("--least", type=float, default=-0.7, help="average log-probability a text must have to be kept")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transcriber = Transcriber(options.model, timestamps=False)
    pieces = load_shard(options.data / "human.mel")
    texts: list[str | None] = []
    for start in range(0, len(pieces), BATCH):
        windows = torch.full((BATCH, WINDOW, N_MELS), FLOOR)
        some = pieces[start : start + BATCH]
        for row, piece in zip(windows, some, strict=False):
            row[: piece.frames] = torch.from_numpy(piece.sound())
        mel = torch.stack([torch.from_numpy(whisper_scale(row.numpy())) for row in windows[: len(some)]])
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            results = transcriber.decode(transcriber.model.encoder(mel.transpose(1, 2)))
        for result in results:
            text = transcriber.tokenizer.decode(result.tokens).strip()
            sure = result.avg_logprob > options.least and bool(text) and not any(letter.isdigit() for letter in text)
            texts.append(text if sure else None)
    path = options.data / "human.jsonl"
    rows = [json.loads(line) | {"text": text} for line, text in zip(path.read_text().splitlines(), texts, strict=True)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    logging.info("%d of %d pieces have a text", sum(text is not None for text in texts), len(rows))


if __name__ == "__main__":
    main()
