"""A run's losses, and the word error rates measured along the way, as one picture."""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

LOSSES = ("text", "ctc", "teacher")


def main() -> None:
    """`python -m tools.train.plot --log FILE [--log FILE …] --out FILE.svg`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, action="append", required=True, help="a run's log.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write; its suffix is its format")
    options = parser.parse_args()
    _, axes = plt.subplots(1, len(LOSSES), figsize=(4 * len(LOSSES), 3), layout="constrained")
    for path in options.log:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for axis, name in zip(axes, LOSSES, strict=True):
            points = [(row["heard_hours"], row[name]) for row in rows if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=path.parent.name)
    for axis, name in zip(axes, LOSSES, strict=True):
        axis.set(title=name, xlabel="hours of sound heard", ylim=(0, None))
        axis.legend()
    plt.savefig(options.out)


if __name__ == "__main__":
    main()
