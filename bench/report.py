"""Results of one benchmark run → a table on stdout, JSON beside the page, and the page's measured part."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
REFERENCE = "openai-whisper"


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds of ours / theirs: noise that hits one round hits both sides of its ratio."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: a row an engine and operation, milliseconds and the ratio to openai-whisper."""
    lines = ["| operation | engine | median ms | best ms | × openai-whisper |", "|---|---|---|---|---|"]
    for operation, engines in results["seconds"].items():
        for engine, seconds in engines.items():
            ratio = f"{median_ratio(seconds, engines[REFERENCE]):.2f}" if REFERENCE in engines else "–"
            median, best = statistics.median(seconds) * 1000, min(seconds) * 1000
            lines.append(f"| {operation} | {engine} | {median:.1f} | {best:.1f} | {ratio} |")
    start = results["start"]
    lines += [
        "",
        f"- `encode`: one window of {results['model']}. `token`: one greedy token with its rules. "
        f"`transcribe`: {results['clip']} from the WAV to its text, greedy.",
        f"- CPU target, process start to first transcript: {start['seconds']:.2f} s; "
        f"peak memory {start['peak_mb']:.0f} MB.",
        f"- A fresh guest instance: {results['instance_seconds'] * 1e6:.0f} µs.",
        f"- The guest's own part of a greedy transcription on the CPU target: {100 * results['guest_share']:.1f} %.",
        f"- {results['machine']}; {results['rounds']} interleaved rounds.",
        *(f"- Skipped: {name}: {reason}." for name, reason in results["missing"].items()),
        "",
    ]
    return "\n".join(lines)


def write_report(results: dict[str, Any], page: Path) -> None:
    """Print the table; put it into the page between its markers and all figures into `<page>.json`."""
    text = table(results)
    sys.stdout.write(text)
    page.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    whole = page.read_text() if page.exists() else f"# Performance\n\n{BEGIN}{END}"
    before, rest = whole.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}{text}{END}{after}")
