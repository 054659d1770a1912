"""Records openai/whisper's results for some recordings, one JSON object per call. Made base.jsonl.

usage, in the virtual environment of `make bench-peers`: python -m tests.speech.record MODEL OUTPUT FILE…

MODEL is a Hugging Face folder. Each FILE, named after its language, is transcribed at temperature 0 with that language,
with the language detected, and translated into English.
"""

import json
import sys
from pathlib import Path
from typing import Any

from bench.engines import Files
from bench.peers import OpenAIWhisper

CALLS: tuple[dict[str, Any], ...] = ({"language": None}, {}, {"task": "translate"})


def record(model: Path, output: Path, files: list[Path]) -> None:
    """Write the results of every call on every file."""
    import soundfile

    whisper = OpenAIWhisper(Files(model, model), files[0])
    with output.open("w", encoding="utf-8") as lines:
        for file in files:
            samples = soundfile.read(file, dtype="float32")[0]
            for call in CALLS:
                options = {"language": file.stem} | call
                answer = whisper.model.transcribe(samples, temperature=0.0, fp16=False, **options)
                tokens = [token for segment in answer["segments"] for token in segment["tokens"]]
                row = {
                    "file": file.name,
                    "options": options,
                    "language": answer["language"],
                    "text": answer["text"],
                    "tokens": tokens,
                }
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
