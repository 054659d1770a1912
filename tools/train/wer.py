"""Word error rate of a model folder on a manifest, after openai/whisper's English text normalisation.

A manifest is `manifest.jsonl` with `{"audio", "text"}` lines, LibriSpeech's `transcripts.tsv` (id, tab, words), or
LibriVox's `transcription` (words, then the id in brackets); audio lies beside it.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import jiwer
import numpy as np
import soundfile
import soxr
from whisper_normalizer.english import EnglishTextNormalizer  # type: ignore[import-not-found, unused-ignore]

from tools.train.decode import Transcriber
from tools.train.features import SAMPLE_RATE, Floats

Row = tuple[Path, str, str]  # audio file, what is said, group


def read_manifest(path: Path) -> list[Row]:
    """A manifest's rows; the group is the voice where it is known."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in lines]
        return [(path.parent / row["audio"], row["text"], row.get("voice", "all").split("+")[0]) for row in rows]
    found = []
    for line in lines:
        bracketed = re.fullmatch(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\((\S+)\)", line)
        name, words = (bracketed[2], bracketed[1]) if bracketed else line.split("\t", 1)
        stems = (name, name.rsplit("-", 1)[-1])  # LibriVox's files are called by their id's last part
        files = [file for stem in stems for file in sorted(path.parent.glob(f"{stem}.*"))]
        audio = next(file for file in files if file.suffix in (".flac", ".wav"))
        found.append((audio, words, "all"))
    return found


def read_audio(path: Path) -> Floats:
    """A sound file → (n_samples,) f32, mono, 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE), dtype=np.float32)


def score(said: list[str], heard: list[str]) -> float:
    """Word error rate, 0 to 1 and above, of normalised texts; what normalises to nothing is left out."""
    normalise = EnglishTextNormalizer()
    pairs = [(normalise(reference), normalise(text)) for reference, text in zip(said, heard, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    return float(jiwer.wer([reference for reference, _ in pairs], [text for _, text in pairs]))


def main() -> None:
    """`python -m tools.train.wer --model FOLDER --manifest FILE`: one JSON object a group, then all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face Whisper folder")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only the first so many clips")
    parser.add_argument("--batch", type=int, default=25, help="clips at a time")
    parser.add_argument("--no-timestamps", action="store_true", help="decode with <|notimestamps|>")
    parser.add_argument("--texts", type=Path, help="where to write what was heard, a JSON line a clip")
    options = parser.parse_args()
    rows = read_manifest(options.manifest)[: options.limit]
    transcriber = Transcriber(options.model, timestamps=not options.no_timestamps)
    heard: list[str] = []
    for start in range(0, len(rows), options.batch):
        heard.extend(transcriber.transcribe([read_audio(audio) for audio, _, _ in rows[start : start + options.batch]]))
    groups: dict[str, list[int]] = defaultdict(list)
    for index, (_, _, group) in enumerate(rows):
        groups[group].append(index)
        groups["all"] += [index] if group != "all" else []
    if options.texts:
        with options.texts.open("w") as file:
            for (audio, said, _), text in zip(rows, heard, strict=True):
                file.write(json.dumps({"audio": audio.name, "said": said, "heard": text}) + "\n")
    for group, indices in sorted(groups.items(), key=lambda item: item[0] == "all"):
        rate = score([rows[index][1] for index in indices], [heard[index] for index in indices])
        line = json.dumps({"group": group, "clips": len(indices), "wer": round(100 * rate, 1)})
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
