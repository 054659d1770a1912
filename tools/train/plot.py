"""A run's losses, and the word error rates measured along the way, as one picture."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

LOSSES = ("text", "ctc", "teacher")
AT_ONCE = 5  # rows of a log whose mean is one point


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def smoothed(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Hours and means of a loss, a point for every `AT_ONCE` rows that have it."""
    having = [row for row in rows if name in row]
    groups = [having[start : start + AT_ONCE] for start in range(0, len(having) - AT_ONCE + 1, AT_ONCE)]
    means = [sum(row[name] for row in group) / AT_ONCE for group in groups]
    return [group[-1]["heard_hours"] for group in groups], means


def main() -> None:
    """`python -m tools.train.plot --log FILE [--log FILE …] [--wer FILE] --out FILE.svg`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, action="append", required=True, help="a run's log.jsonl")
    parser.add_argument("--wer", type=Path, help='JSON lines of {"heard_hours", and a set\'s name: its percentage}')
    parser.add_argument("--out", type=Path, required=True, help="the picture to write; its suffix is its format")
    options = parser.parse_args()
    logs = {path.parent.name: rows_of(path) for path in options.log}
    losses = [name for name in LOSSES if any(name in row for rows in logs.values() for row in rows)]
    panels = [*losses, *(["word error rate, %"] if options.wer else [])]
    _, axes = plt.subplots(1, len(panels), figsize=(3.5 * len(panels), 3), layout="constrained")
    for run, rows in logs.items():
        for axis, name in zip(axes, losses, strict=False):
            hours, means = smoothed(rows, name)
            if hours:
                axis.plot(hours, means, label=run)
    if options.wer:
        measured = rows_of(options.wer)
        for name in sorted({name for row in measured for name in row} - {"heard_hours"}):
            points = [(row["heard_hours"], row[name]) for row in measured if name in row]
            axes[-1].plot(*zip(*points, strict=True), marker="o", label=name)
    for axis, name in zip(axes, panels, strict=True):
        axis.set(title=name, xlabel="hours of sound heard", ylim=(0, None))
        axis.legend(fontsize="small")
    plt.rcParams["svg.hashsalt"] = "wisp"  # the same picture for the same logs
    plt.savefig(options.out, metadata={"Date": None} if options.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
