"""`make bench`: one command, one machine, one run. Rounds are interleaved, so noise hits all engines alike."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.clips import build_clips
from bench.cold import WISP, Start, measure_starts, start_process, start_server
from bench.device_time import measure_kernels
from bench.engines import ENGINES, ROOT, SHARED, THREADS, Files, timed
from bench.plot import write_plot
from bench.report import OURS_ON_GPU, write_report
from bench.share import measure_guest_share

MAIN_CLIP = "11 s"
LONG_CLIP = "5 min"
TOGETHER = (1, 4, 16)
QUICK = ("encode", "token", "2 s", MAIN_CLIP)  # all that a slow engine is asked
N_INSTANCES = 20_000

Seconds = dict[str, dict[str, list[float]]]  # operation → engine → seconds per round


class Worker:
    """A worker process with one engine."""

    def __init__(self, python: Path, name: str, files: Files, clip: Path) -> None:
        self.name, self.entry = name, ENGINES[name]
        self.process = subprocess.Popen(
            worker_command(python, name, files, clip),
            cwd=ROOT,
            env=self.entry.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ready = self._answer()
        self.is_slow = bool(ready.get("is_slow"))
        self.missing = "" if ready.get("ready") else str(ready.get("reason", "it did not start"))

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        """{"seconds": …} and, for some, "text"; or {"unsupported": reason}."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if not answer:
            raise RuntimeError(f"{self.name} died at {dict(request)}")
        return answer

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def worker_command(python: Path, name: str, files: Files, clip: Path) -> list[str]:
    return [str(python), "-m", "bench.worker", name, str(files.model), str(files.converted), str(clip)]


def measure_rounds(
    workers: Sequence[Worker], requests: Mapping[str, Mapping[str, object]], rounds: int
) -> tuple[Seconds, dict[str, Any]]:
    """{operation: …} requests → seconds, and {operation: {engine: text}}, after one unmeasured round.

    The long clip runs in a third of the rounds.
    """
    seconds: Seconds = {name: {} for name in requests}
    texts: dict[str, Any] = {name: {} for name in requests}
    for lap in range(rounds + 1):
        for name, request in requests.items():
            if name == LONG_CLIP and lap % 3 != 1:
                continue
            for worker in _turned(workers, lap):
                if worker.is_slow and name not in QUICK:
                    continue
                answer = worker.ask(request)
                if "text" in answer:
                    texts[name][worker.name] = answer["text"]
                if lap and "seconds" in answer:
                    seconds[name].setdefault(worker.name, []).append(answer["seconds"])
    return {name: {w.name: by[w.name] for w in workers if w.name in by} for name, by in seconds.items()}, texts


def _turned(workers: Sequence[Worker], lap: int) -> Iterable[Worker]:
    """Changes the order each round, so that no engine always runs after the same neighbour."""
    start = lap % len(workers)
    return (*workers[start:], *workers[:start])


def measure_instances(count: int = N_INSTANCES) -> dict[str, float]:
    """Fresh instances of the prepared guest, one after the other on one core, `count` of them."""
    from service.guest.runner import Guest

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with Guest(ROOT / "assets" / "guest.wasm") as guest:
            start = time.perf_counter()
            taken = [timed(guest.instantiate) for _ in range(count)]
            whole = time.perf_counter() - start
    finally:
        os.sched_setaffinity(0, cores)
    return {"count": count, "per_second": count / whole, "median_seconds": statistics.median(taken)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "tiny_en", help="a Hugging Face folder")
    parser.add_argument("--speech", type=Path, default=SHARED / "speech", help="folder with jfk.wav and librispeech/")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="virtual environment of the peers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=sorted(ENGINES), help="these engines alone")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    build = ROOT / "build" / "bench"
    clips = build_clips(options.speech, build)
    if not options.model.exists() or MAIN_CLIP not in clips:
        parser.error(f"no {options.model} or no {options.speech / 'jfk.wav'}: name others with --model and --speech")
    files = Files(options.model.resolve(), build / options.model.name)
    peers_python = options.peers / "bin" / "python"
    if peers_python.exists():
        convert = [str(peers_python), "-m", "bench.convert", str(files.model), str(files.converted)]
        subprocess.run(convert, cwd=ROOT, check=True)

    workers, missing = [], {}
    for name in options.only or ENGINES:
        python = peers_python if ENGINES[name].is_peer else Path(sys.executable)
        if not python.exists():
            missing[name] = f"no {python} (make bench-peers installs it)"
            continue
        worker = Worker(python, name, files, clips[MAIN_CLIP])
        if worker.missing:
            missing[name] = worker.missing
            worker.close()
        else:
            workers.append(worker)
    try:
        requests: dict[str, dict[str, object]] = {name: {"operation": name} for name in ("encode", "token")}
        requests |= {name: {"operation": "transcribe", "clip": str(clip)} for name, clip in clips.items()}
        seconds, texts = measure_rounds(workers, requests, options.rounds)
        load = {"operation": "together", "clip": str(clips[MAIN_CLIP])}
        loads = {f"{n} at once": load | {"n": n} for n in TOGETHER}
        together, _ = measure_rounds(workers, loads, max(1, options.rounds // 3))
    finally:
        for worker in workers:
            worker.close()

    command = [WISP, "transcribe", str(clips[MAIN_CLIP]), "--model", str(files.model), "--target", "cpu"]
    starts: dict[str, Start] = {}
    for worker in workers:
        if not worker.is_slow and worker.name in texts[MAIN_CLIP]:
            python = peers_python if worker.entry.is_peer else Path(sys.executable)
            once = [*worker_command(python, worker.name, files, clips[MAIN_CLIP]), "once"]
            starts[worker.name] = partial(start_process, once, worker.entry.environment())
    starts["wisp transcribe, higher temperatures where its checks ask for them"] = partial(
        start_process, command, os.environ
    )
    starts["wisp serve, first answer over HTTP"] = partial(start_server, files.model, clips[MAIN_CLIP])
    results = {
        "machine": f"{THREADS} cores, {platform.machine()}, Python {platform.python_version()}",
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS", "OMP", "MKL"))
        },
        "model": options.model.name,
        "clip": MAIN_CLIP,
        "rounds": options.rounds,
        "seconds": seconds,
        "together": together,
        "texts": texts,
        "missing": missing,
        "start": measure_starts(starts, max(3, options.rounds // 2)),
        "instances": measure_instances(),
        "kernels": measure_kernels(files, clips[MAIN_CLIP]) if OURS_ON_GPU in {w.name for w in workers} else {},
        "guest_share": measure_guest_share(files, clips[MAIN_CLIP], options.rounds),
    }
    write_report(results, options.output)
    write_plot(results, options.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
