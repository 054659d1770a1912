"""Reports one benchmark run: tables on stdout, JSON next to the page, and the page's measured part."""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.engines import ENGINES

BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
OURS, OURS_ON_GPU = "wisp", "wisp gpu"  # whose time is divided by each other engine's


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds of ours / theirs: noise that hits one round hits both sides of its ratio."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def compared(engine: str) -> str:
    """Which Wisp an engine is compared with: on the GPU for GPU engines, else on the CPU."""
    is_gpu = engine in ENGINES and ENGINES[engine].is_gpu and engine != OURS_ON_GPU
    return OURS_ON_GPU if is_gpu else OURS


def _rows(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _times(seconds: Mapping[str, Mapping[str, list[float]]], operations: Iterable[str], digits: int) -> list[str]:
    """A row per engine, a column per operation: median milliseconds, and Wisp's time divided by it."""
    operations = [name for name in operations if seconds.get(name)]
    engines = dict.fromkeys(engine for name in operations for engine in seconds[name])

    def cell(operation: str, engine: str) -> str:
        taken = seconds[operation].get(engine)
        if not taken:
            return "–"
        shown = f"{statistics.median(taken) * 1000:.{digits}f}"
        ours = seconds[operation].get(compared(engine))
        return shown if engine == compared(engine) or not ours else f"{shown} ({median_ratio(ours, taken):.2f})"

    return _rows(
        ["engine", *operations], [[engine, *(cell(name, engine) for name in operations)] for engine in engines]
    )


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    seconds, together = results["seconds"], results["together"]
    lines = [
        f"{results['machine']}; `{results['model']}`; {results['rounds']} interleaved rounds. Times are medians in ms; "
        f"in brackets Wisp's time\ndivided by that engine's, the median of the rounds' ratios: below 1 Wisp is faster.",
        "",
        *_times(seconds, ("encode", "token"), 1),
        "",
        "From samples or a WAV file to the text:",
        "",
        *_times(seconds, [name for name in seconds if name not in ("encode", "token")], 0),
    ]
    if together:
        lines += ["", f"Time for N concurrent transcriptions of {results['clip']} to finish:", ""]
        lines += _times(together, list(together), 0)
    lines += ["", "Process start to first transcript, and the largest resident set:", ""]
    starts = results["start"]

    def ratio(name: str) -> str:
        ours = starts.get(compared(name))
        return f" ({ours['seconds'] / starts[name]['seconds']:.2f})" if ours and name != compared(name) else ""

    lines += _rows(
        ["engine", "s", "best s", "peak MB"],
        [
            [name, f"{start['seconds']:.2f}{ratio(name)}", f"{start['best']:.2f}", f"{start['peak_mb']:.0f}"]
            for name, start in starts.items()
        ],
    )
    rate = results["instances"]
    lines += [
        "",
        f"- A fresh guest instance: {rate['median_seconds'] * 1e6:.0f} µs; {rate['count']} in a row on one core: "
        f"{rate['per_second']:.0f} a second.",
        f"- The guest's own part of a greedy transcription on the CPU target: {100 * results['guest_share']:.1f} %.",
        *(f"- Skipped: {name}: {reason}." for name, reason in results["missing"].items()),
        "",
    ]
    if kernels := results.get("kernels"):
        lines += _kernels(kernels)
    return "\n".join(lines)


def _kernels(kernels: Mapping[str, Any]) -> list[str]:
    """A table for a window and one for a token: every kernel's own time on the device."""
    lines = [
        f"On the device itself, by its clock ({kernels['adapter']}; plain kernels reach {kernels['gflop_per_s']:.0f} "
        f"GFLOP/s of multiply-adds and {kernels['gb_per_s']:.0f} GB/s of reading there). The last column is the least "
        "time that these allow, divided by the time taken.",
        "",
    ]
    for operation in ("encode", "token"):
        rows = [
            [
                f"{operation}: `{name}`",
                *(f"{kernel['launches']:.0f}", f"{kernel['us']:.0f}", f"{kernel['mb']:.1f}"),
                *(f"{kernel['gflop']:.1f}" if kernel["gflop"] else "–", f"{kernel['of_limit']:.2f}"),
            ]
            for name, kernel in kernels[operation].items()
            if kernel["launches"] >= 1
        ]
        lines += [*_rows(["kernel", "launches", "µs", "MB bound", "GFLOP", "of the limit"], rows), ""]
    return lines


def write_report(results: dict[str, Any], page: Path) -> None:
    """Print the tables; write them between the page's markers, and all figures into `<page>.json`."""
    text = table(results)
    sys.stdout.write(text)
    page.with_suffix(".json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    whole = page.read_text() if page.exists() else f"# Performance\n\n{BEGIN}{END}"
    before, rest = whole.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}{text}{END}{after}")
