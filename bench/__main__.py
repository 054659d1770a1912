"""`make bench`: one command, one machine, one run. Rounds are interleaved: noise hits every engine alike."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.engines import ENGINES, PEERS, timed
from bench.report import write_report
from bench.share import measure_guest_share

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = ("encode", "token", "transcribe")


class Worker:
    """A worker process that holds one engine."""

    def __init__(self, python: Path, name: str, model: Path, clip: Path) -> None:
        self.name = name
        command = [str(python), "-m", "bench.worker", name, str(model), str(clip)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self._answer()
        self.missing = "" if ready.get("ready") else str(ready.get("reason", "it did not start"))

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def ask(self, operation: str) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(operation) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["text" if operation == "text" else "seconds"]

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def measure_rounds(workers: Sequence[Worker], rounds: int) -> dict[str, dict[str, list[float]]]:
    """{operation: {engine: seconds a round}}; one unmeasured round first."""
    seconds: dict[str, dict[str, list[float]]] = {op: {w.name: [] for w in workers} for op in OPERATIONS}
    for lap in range(rounds + 1):
        for operation in OPERATIONS:
            for worker in workers:
                taken = worker.ask(operation)
                if lap:
                    seconds[operation][worker.name].append(taken)
    return seconds


def measure_start(model: Path, clip: Path, rounds: int) -> dict[str, float]:
    """CPU target, process start to first transcript: {"seconds": the median, "peak_mb": the largest resident set}."""
    seconds, peaks = [], []
    command = [
        str(Path(sys.executable).parent / "wisp"),
        "transcribe",
        str(clip),
        "--model",
        str(model),
        "--target",
        "cpu",
    ]
    for _ in range(rounds):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed")
        assert process.stdout
        process.stdout.close()
        seconds.append(time.perf_counter() - start)
        peaks.append(usage.ru_maxrss / 1024)
    return {"seconds": statistics.median(seconds), "peak_mb": max(peaks)}


def measure_instances(count: int = 2000) -> float:
    """Seconds that one fresh instance of the prepared guest takes, as the median of `count`."""
    from service.guest import Guest

    with Guest(ROOT / "assets" / "guest.wasm") as guest:
        return statistics.median(timed(guest.instantiate) for _ in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    shared = Path(os.environ.get("WISP_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--model", type=Path, default=shared / "models" / "tiny_en", help="a Hugging Face folder")
    parser.add_argument("--clip", type=Path, default=shared / "speech" / "jfk.wav", help="16 kHz mono 16-bit WAV")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="virtual environment of the peers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=sorted(ENGINES), help="these engines alone")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    for path in (options.model, options.clip):
        if not path.exists():
            parser.error(f"{path} does not exist: name a model with --model and a clip with --clip")

    workers, missing = [], {}
    for name in options.only or ENGINES:
        python = options.peers / "bin" / "python" if name in PEERS else Path(sys.executable)
        if not python.exists():
            missing[name] = f"no {python} (make bench-peers installs it)"
            continue
        worker = Worker(python, name, options.model.resolve(), options.clip.resolve())
        if worker.missing:
            missing[name] = worker.missing
            worker.close()
        else:
            workers.append(worker)
    try:
        seconds = measure_rounds(workers, options.rounds)
        texts = {worker.name: worker.ask("text") for worker in workers}
    finally:
        for worker in workers:
            worker.close()
    results = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "model": options.model.name,
        "clip": options.clip.name,
        "rounds": options.rounds,
        "seconds": seconds,
        "texts": texts,
        "missing": missing,
        "start": measure_start(options.model, options.clip, max(3, options.rounds // 2)),
        "instance_seconds": measure_instances(),
        "guest_share": measure_guest_share(options.model, options.clip, options.rounds),
    }
    write_report(results, options.output)


if __name__ == "__main__":
    main()
