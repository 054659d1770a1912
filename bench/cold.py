"""Cold starts: from the start of a process to its first transcript, and its peak memory.

Every engine transcribes the same clip in a fresh process of bench.worker. Bytecode is kept between rounds, as in an
installation; otherwise only Wisp, which runs from its sources here, would be compiled each time.
"""

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WISP = str(Path(sys.executable).parent / "wisp")
BOUNDARY = "wisp-benchmark"


class Start(NamedTuple):
    """How to start a process."""

    command: Sequence[str]
    environment: Mapping[str, str]


def measure_starts(starts: Mapping[str, Start], rounds: int) -> dict[str, dict[str, float]]:
    """{name: {"seconds": median to the first line on stdout, "best", "peak_mb": largest resident set}}, interleaved.

    A first, unmeasured round fills the caches of the disk and of compiled code.
    """
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    peaks: dict[str, list[float]] = {name: [] for name in starts}
    for lap in range(rounds + 1):
        for name, start in starts.items():
            taken, peak = _start(start)
            if lap:
                seconds[name].append(taken)
                peaks[name].append(peak)
    return {
        name: {"seconds": statistics.median(taken), "best": min(taken), "peak_mb": max(peaks[name])}
        for name, taken in seconds.items()
    }


def _with_bytecode(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _start(start: Start) -> tuple[float, float]:
    command, environment = start.command, _with_bytecode(start.environment)
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
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


def measure_server(model: Path, clip: Path, rounds: int) -> dict[str, float]:
    """`wisp serve` on the CPU target from its start to its first response over HTTP, and its peak resident set."""
    seconds, peaks = [], []
    for lap in range(rounds + 1):
        taken, peak = _serve(model, clip)
        if lap:
            seconds.append(taken)
            peaks.append(peak)
    return {"seconds": statistics.median(seconds), "best": min(seconds), "peak_mb": max(peaks)}


def _serve(model: Path, clip: Path) -> tuple[float, float]:
    start = time.perf_counter()
    command = [WISP, "serve", "--port", "0", "--host", "127.0.0.1", "--model", str(model), "--target", "cpu"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=_with_bytecode(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        address = ""
        for line in process.stderr:
            if found := re.search(r"http://[\d.]+:\d+", line):
                address = found[0]
                break
        _post(address, clip)
        return time.perf_counter() - start, _peak_mb(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        process.stderr.close()
        process.wait()


def _post(address: str, clip: Path) -> None:
    """One transcription; the request waits while the server loads."""
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="clip.wav"\r\n\r\n'.encode()
        + clip.read_bytes()
        + f"\r\n--{BOUNDARY}--\r\n".encode()
    )
    request = urllib.request.Request(
        f"{address}/v1/audio/transcriptions",
        body,
        {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
    )
    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
            return
        if time.monotonic() > end:
            raise RuntimeError("wisp serve gave no answer in a minute")
        time.sleep(0.005)


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024
