"""The benchmark's results as one SVG: bars of time by engine, for each clip. Needs the extra [bench]."""

import statistics
from pathlib import Path
from typing import Any


def write_plot(results: dict[str, Any], path: Path) -> bool:
    """Draw it; False if matplotlib isn't installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    from matplotlib import pyplot

    clips = {name: by for name, by in results["seconds"].items() if name not in ("encode", "token") and by}
    pyplot.rcParams.update({"svg.hashsalt": "wisp", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(1, len(clips), figsize=(3.2 * len(clips), 2.8), squeeze=False)
    for place, (clip, engines) in zip(axes[0], clips.items(), strict=True):
        names = list(engines)[::-1]
        medians = [statistics.median(engines[name]) for name in names]
        colours = ["#c2410c" if name.startswith("wisp") else "#64748b" for name in names]
        place.barh(names, medians, color=colours)
        place.set_title(f"{clip} of speech")
        place.set_xlabel("seconds")
        for spine in ("top", "right"):
            place.spines[spine].set_visible(False)
        for y, value in enumerate(medians):
            place.text(value, y, f" {value:.2f}", va="center")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True
