"""Word error rate of the product, for any model and manifest, after openai/whisper's English text normalisation.

A manifest is `manifest.jsonl` with `{"audio", "text"}` lines, LibriSpeech's `transcripts.tsv` (id, tab, words), or
LibriVox's `transcription` (words, then the id in brackets), with its audio next to it.
"""

import argparse
import asyncio
import json
import logging
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

from service.audio.decode import SAMPLE_RATE, decode
from service.guest.code_cache import user_cache_folder
from service.http.app import Engine
from service.http.realtime.names import SILENCE_MS
from service.settings import read_settings
from service.transcription.chunking import Chunking
from service.transcription.listener import Listener, Stopped
from service.transcription.transcriber import Options, Transcriber
from service.transcription.utterance import Utterance, Words

BLOCK = SAMPLE_RATE // 10  # samples that a live session gets at a time
SERVER_VAD = Chunking(silence_duration_ms=SILENCE_MS)


class Clip(NamedTuple):
    """One line of a manifest."""

    audio: Path
    said: str


def read_manifest(path: Path) -> list[Clip]:
    """A manifest's clips. Raises ValueError with a line that cannot be read or has no sound."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in lines]
        return [Clip(path.parent / row["audio"], row["text"]) for row in rows]
    found = []
    for line in lines:
        bracketed = re.fullmatch(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\((\S+)\)", line)
        name, _, words = (bracketed[2], "", bracketed[1]) if bracketed else line.partition("\t")
        stems = (name, name.rsplit("-", 1)[-1])  # LibriVox's files are named by the last part of their id
        files = [path.parent / f"{stem}{suffix}" for stem in stems for suffix in (".flac", ".wav")]
        audio = next((file for file in files if file.exists()), None)
        if audio is None or not words:
            raise ValueError(f"{path}: no sound or no words for the line {line!r}")
        found.append(Clip(audio, words))
    return found


class Score(NamedTuple):
    """The word error rate over some clips."""

    clips: int
    wer: float  # 0 to 1 and above
    substitutions: int
    deletions: int
    insertions: int


def score(said: Sequence[str], heard: Sequence[str]) -> Score:
    """Word errors of normalised texts; skips a clip whose text normalises to nothing."""
    normalise = EnglishTextNormalizer()
    pairs = [(normalise(reference), normalise(text)) for reference, text in zip(said, heard, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    found = jiwer.process_words([reference for reference, _ in pairs], [text for _, text in pairs])
    return Score(len(pairs), float(found.wer), found.substitutions, found.deletions, found.insertions)


def transcribe(clips: Iterable[Clip], flags: Mapping[str, str]) -> list[str]:
    """The product's transcript of each clip. `flags` are settings, as for `wisp serve`. Raises WispError."""
    engine = Engine(read_settings({}, flags), cache_folder=user_cache_folder())
    try:
        transcriber = engine.load()
        heard = []
        for clip in clips:
            with clip.audio.open("rb") as file:
                heard.append(transcriber.transcribe(decode(file), Options()).text)
        return heard
    finally:
        engine.close()


def transcribe_live(clips: Iterable[Clip], flags: Mapping[str, str]) -> list[str]:
    """What a live session hears of each clip, if the machine keeps up. Raises WispError."""
    busy_share, Utterance.busy_share = Utterance.busy_share, math.inf
    engine = Engine(read_settings({}, flags), cache_folder=user_cache_folder())
    try:
        transcriber = engine.load()
        return [asyncio.run(_hear(transcriber, clip)) for clip in clips]
    finally:
        Utterance.busy_share = busy_share
        engine.close()


async def _hear(transcriber: Transcriber, clip: Clip) -> str:
    """Raises RuntimeError if an utterance contradicts the words that were said of it before."""
    said: dict[Utterance, str] = defaultdict(str)

    def on_words(utterance: Utterance, words: Words) -> None:
        said[utterance] += words.settled

    listener = Listener(transcriber, Options(), cutting=SERVER_VAD, on_words=on_words)
    with clip.audio.open("rb") as file:
        samples = np.concatenate([*decode(file).blocks(), np.zeros(SAMPLE_RATE, np.float32)])
    texts = []
    for first in range(0, len(samples), BLOCK):
        for border in await listener.hear(samples[first : first + BLOCK]):
            if isinstance(border, Stopped):
                texts.append((await border.utterance.result()).text)
                if texts[-1] != said[border.utterance]:
                    raise RuntimeError(f"{clip.audio}: {texts[-1]!r} after {said[border.utterance]!r}")
        await listener.idle()
    return " ".join(texts)


def main() -> None:
    """`python -m tools.wer --model FOLDER --manifest FILE`: the score as a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="as wisp serve takes it; default: what it chooses")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--target", choices=("auto", "gpu", "cpu"), default="cpu")
    parser.add_argument("--limit", type=int, help="only the first N clips")
    parser.add_argument("--live", action="store_true", help="as a live session hears it")
    parser.add_argument("--texts", type=Path, help="where to write what was heard, a JSON line a clip")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not arguments.manifest.is_file():
        parser.error(f"{arguments.manifest}: no such manifest")
    clips = read_manifest(arguments.manifest)[: arguments.limit]
    heard = (transcribe_live if arguments.live else transcribe)(
        clips, {"model": arguments.model, "target": arguments.target}
    )
    if arguments.texts:
        pairs = zip(clips, heard, strict=True)
        rows = [json.dumps({"audio": clip.audio.name, "said": clip.said, "heard": text}) for clip, text in pairs]
        arguments.texts.write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = score([clip.said for clip in clips], heard)
    sys.stdout.write(json.dumps(found._asdict() | {"wer": round(100 * found.wer, 1)}) + "\n")


if __name__ == "__main__":
    main()
