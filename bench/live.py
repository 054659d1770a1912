"""`make bench-live`: live sessions in real time against a server process: the delay of words and of files.

Every session streams the same minute of human speech to /v1/realtime, as OpenAI's clients do by default. A word's delay
begins at its end in the transcript of the whole file. Meanwhile one file after the other is posted.
"""

import argparse
import asyncio
import base64
import difflib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from websockets.asyncio.client import connect

from bench.engines import SHARED

RATE = 24_000  # Hz, OpenAI's
FRAME_S = 0.05
SILENCE_S = 1.0  # between clips
LAST_S = 30.0  # for the last transcripts, after the audio
WISP = str(Path(sys.executable).parent / "wisp")

Pcm = NDArray[np.int16]


@dataclass
class Heard:
    """What one session got: (seconds since its first frame, text) of each delta, and of each finished utterance."""

    deltas: list[tuple[float, str]] = field(default_factory=list)
    completed: list[tuple[float, float, str]] = field(default_factory=list)  # when, where its audio ends, the text


@contextmanager
def server(model: Path) -> Iterator[str]:
    """A server of that model on the CPU target: its address."""
    command = [WISP, "serve", "--port", "0", "--model", str(model), "--target", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            found = next(found for line in process.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
            next(line for line in process.stderr if "ready" in line)
            yield found[0]
        finally:
            process.terminate()
            process.stderr.read()


def minute(folder: Path, seconds: float) -> Pcm:
    """Clips of the folder, one after the other with silence between them, up to that length."""
    parts: list[NDArray[np.float32]] = []
    for file in sorted(folder.glob("*.flac")):
        samples, rate = soundfile.read(file, dtype="float32")
        parts += [soxr.resample(samples, rate, RATE), np.zeros(int(SILENCE_S * RATE), np.float32)]
        if sum(map(len, parts)) >= seconds * RATE:
            break
    pcm: Pcm = (np.clip(np.concatenate(parts), -1, 1) * 32767).astype(np.int16)
    return pcm


async def session(address: str, pcm: Pcm) -> Heard:
    """Stream in real time until every utterance is completed."""
    heard, ends, size = Heard(), dict[str, float](), int(RATE * FRAME_S)
    url = f"{address.replace('http', 'ws')}/v1/realtime?intent=transcription"
    async with connect(url, max_size=None, compression=None) as socket:
        begin = time.monotonic()

        async def listen() -> None:
            async for frame in socket:
                event, now = json.loads(frame), time.monotonic() - begin
                match event["type"].removeprefix("conversation.item.input_audio_transcription."):
                    case "input_audio_buffer.speech_stopped":
                        ends[event["item_id"]] = event["audio_end_ms"] / 1000
                    case "delta":
                        heard.deltas.append((now, event["delta"]))
                    case "completed":
                        heard.completed.append((now, ends.pop(event["item_id"]), event["transcript"]))
                    case "error" | "failed":
                        raise RuntimeError(frame)

        def check() -> None:
            if listening.done():
                listening.result()
                raise RuntimeError("the server has closed the connection")

        listening = asyncio.create_task(listen())
        for first in range(0, len(pcm), size):
            audio = base64.b64encode(pcm[first : first + size].tobytes()).decode()
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            await asyncio.sleep(max(0.0, begin + (first + size) / RATE - time.monotonic()))
            check()
        end = time.monotonic() + LAST_S
        while ends or not heard.completed:
            check()
            if time.monotonic() > end:
                raise RuntimeError(f"{len(ends)} utterances have no transcript {LAST_S:g} s after the audio's end")
            await asyncio.sleep(0.05)
        listening.cancel()
    return heard


def plain(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def delays(heard: Heard, words: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Seconds from the end of each word to its delta; from the end of each utterance's speech to its last words."""
    said = [(word, spoken["end"]) for spoken in words for word in plain(spoken["word"])]
    got = [(word, when) for when, text in heard.deltas for word in plain(text)]
    matcher = difflib.SequenceMatcher(None, [word for word, _ in said], [word for word, _ in got], autojunk=False)
    settled = [
        got[block.b + i][1] - said[block.a + i][1] for block in matcher.get_matching_blocks() for i in range(block.size)
    ]
    final = [when - max(end for _, end in said if end <= at + 0.1) for when, at, _ in heard.completed]
    return settled, final


async def files(address: str, clip: bytes, ended: asyncio.Event) -> list[float]:
    """Seconds that one file after the other takes."""
    taken = []
    async with httpx2.AsyncClient(timeout=120) as client:
        while not ended.is_set():
            begin = time.monotonic()
            answer = await client.post(f"{address}/v1/audio/transcriptions", files={"file": ("clip.wav", clip)})
            answer.raise_for_status()
            taken.append(time.monotonic() - begin)
            await asyncio.sleep(1.0)
    return taken


async def run(address: str, pcm: Pcm, words: Sequence[dict[str, Any]], n: int, clip: bytes | None) -> dict[str, Any]:
    """`n` sessions at once, and files meanwhile unless `clip` is None → medians and largest delays in seconds."""
    ended = asyncio.Event()
    posting = asyncio.create_task(files(address, clip, ended)) if clip is not None else None
    sessions = await asyncio.gather(*(session(address, pcm) for _ in range(n)))
    ended.set()
    late = [delays(one, words) for one in sessions]
    settled = [delay for one, _ in late for delay in one]
    final = [delay for _, one in late for delay in one]
    texts = [[word for _, _, text in one.completed for word in plain(text)] for one in sessions]
    said = [word for spoken in words for word in plain(spoken["word"])]
    same = [difflib.SequenceMatcher(None, said, text, autojunk=False).ratio() for text in texts]
    row: dict[str, Any] = {
        "sessions": n,
        "word_settled_s": statistics.median(settled),
        "word_settled_p95_s": statistics.quantiles(settled, n=20)[-1],
        "final_s": statistics.median(final),
        "final_max_s": max(final),
        "words_as_in_the_file": min(same),
    }
    if posting is not None:
        row["file_s"] = statistics.median(await posting)
    return {name: round(value, 2) for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-live", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "tiny_en")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    pcm = minute(SHARED / "speech" / "librispeech", options.seconds)
    clip = (SHARED / "speech" / "jfk.wav").read_bytes()
    with server(options.model) as address:
        wav = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\1\0" + RATE.to_bytes(4, "little")
        wav += (2 * RATE).to_bytes(4, "little") + b"\2\0\x10\0data\xff\xff\xff\xff" + pcm.tobytes()
        fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
        post = httpx2.post(f"{address}/v1/audio/transcriptions", data=fields, files={"file": wav}, timeout=300)
        words = post.raise_for_status().json()["words"]
        for n in options.sessions:
            for with_files in (None, clip):
                sys.stdout.write(json.dumps(asyncio.run(run(address, pcm, words, n, with_files))) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
