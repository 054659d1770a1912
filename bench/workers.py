"""`python -m bench.workers FILE`: how many transcriptions should compute at once on the CPU (WISP_WORKERS)?

In each round several requests for one recording start at the same moment, on engines that differ only in their number
of workers and decode with one beam. Each number is a median over the rounds, divided by that of the first engine.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from pathlib import Path

from service.audio.decode import Audio, decode
from service.http.app import Engine
from service.settings import Settings
from service.transcription.transcriber import Options, Transcriber, Transcription

Round = tuple[float, float, float]  # seconds until the first, the median and the last answer


def measure(transcriber: Transcriber, audio: Audio, n_requests: int) -> Round:
    """One round: `n_requests` at the same moment."""
    ended: list[float] = []
    noted = threading.Semaphore(0)
    started = time.perf_counter()

    def note(_: Future[Transcription]) -> None:
        ended.append(time.perf_counter() - started)
        noted.release()

    futures = [transcriber.submit(audio, Options()).future for _ in range(n_requests)]
    for future in futures:
        future.add_done_callback(note)
    for future in futures:
        future.result()
        noted.acquire()  # a result is available before the callbacks have run
    return min(ended), statistics.median(ended), max(ended)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="", help="as for wisp serve")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--requests", type=int, default=8, help="at the same moment")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    with options.file.open("rb") as file, ExitStack() as stack:
        audio = decode(file)
        transcribers = {}
        for workers in options.workers:
            settings = Settings(model=options.model, target="cpu", workers=workers, beam_size=1)
            engine = stack.enter_context(closing(Engine(settings)))
            transcribers[workers] = engine.load()
            engine.prove(transcribers[workers])
        rounds: dict[int, list[Round]] = {workers: [] for workers in transcribers}
        for _ in range(options.rounds):
            for workers, transcriber in transcribers.items():
                rounds[workers].append(measure(transcriber, audio, options.requests))
    # Ratios within a round, because other work on the machine comes and goes.
    first = rounds[options.workers[0]]
    sys.stdout.write("| workers | throughput | the first answer | the middle one | the last |\n|---|---|---|---|---|\n")
    for workers, taken in rounds.items():
        pairs = [
            [ours / theirs for ours, theirs in zip(mine, base, strict=True)]
            for mine, base in zip(taken, first, strict=True)
        ]
        early, middle, late = (statistics.median(ratios) for ratios in zip(*pairs, strict=True))
        sys.stdout.write(f"| {workers} | {1 / late:.2f} | {early:.2f} | {middle:.2f} | {late:.2f} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
