"""Cold starts: from the start of a process to its first transcript, and its peak memory.

Every engine transcribes the same clip in a fresh process of bench.worker. Bytecode is kept between rounds, as in an
installation; otherwise only Wisp, which runs from its sources here, would be compiled each time.
"""

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx2 as httpx

from bench.engines import ROOT

WISP = str(Path(sys.executable).parent / "wisp")
Start = Callable[[], tuple[float, float]]  # → seconds, peak MB


def measure_starts(starts: Mapping[str, Start], rounds: int) -> dict[str, dict[str, float]]:
    """{name: {"seconds": median, "best", "peak_mb": largest resident set}}, interleaved.

    A first, unmeasured round fills the caches of the disk and of compiled code.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
    for lap in range(rounds + 1):
        for name, start in starts.items():
            measured = start()
            if lap:
                taken[name].append(measured)
    found = {}
    for name, pairs in taken.items():
        seconds, peaks = zip(*pairs, strict=True)
        found[name] = {"seconds": statistics.median(seconds), "best": min(seconds), "peak_mb": max(peaks)}
    return found


def _with_bytecode(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}


def start_process(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """A process from its start to its first line on stdout, and its peak resident set. RuntimeError if it fails."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=_with_bytecode(environment), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout
    first = process.stdout.readline()
    taken = time.perf_counter() - begin
    process.stdout.read()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first:
        raise RuntimeError(f"{' '.join(command)} failed")
    return taken, usage.ru_maxrss / 1024


def start_server(model: Path, clip: Path) -> tuple[float, float]:
    """`wisp serve` on the CPU target from its start to its first response over HTTP, and its peak resident set."""
    command = [WISP, "serve", "--port", "0", "--host", "127.0.0.1", "--model", str(model), "--target", "cpu"]
    with httpx.Client(timeout=60) as client:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_with_bytecode(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        try:
            listening = (re.search(r"http://[\d.]+:\d+", line) for line in process.stderr)
            address = next(found[0] for found in listening if found)
            _post(client, address, clip)
            return time.perf_counter() - start, _peak_mb(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            process.stderr.read()
            process.stderr.close()
            process.wait()


def _post(client: httpx.Client, address: str, clip: Path) -> None:
    """One transcription; the request waits while the server loads."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            files = {"file": ("clip.wav", clip.read_bytes())}
            client.post(f"{address}/v1/audio/transcriptions", files=files).raise_for_status()
            return
        except httpx.ConnectError:
            time.sleep(0.005)
    raise RuntimeError("wisp serve gave no answer in a minute")


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024
