"""Reports the compressed size of an image by layer, as a registry would store it.

usage: size.py IMAGE [LIMIT_MB]    exit code 1 if the image is larger; 1 MB = 1 000 000 bytes
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def layers(image: str) -> list[tuple[int, str]]:
    """(compressed bytes, the instruction that made it) for each layer of an image in buildah's storage."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["buildah", "push", "--quiet", "--format", "v2s2", image, f"dir:{folder}"], check=True)
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
        config = json.loads((Path(folder) / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    made_by = [
        entry.get("created_by", "") + entry.get("comment", "")
        for entry in config["history"]
        if not entry.get("empty_layer")
    ]
    return list(zip([layer["size"] for layer in manifest["layers"]], made_by, strict=True))


def report(rows: list[tuple[int, str]]) -> str:
    """A line per layer, then the total."""
    lines = [f"{size / 1e6:8.2f} MB  {made_by}" for size, made_by in rows]
    return "\n".join([*lines, f"{sum(size for size, _ in rows) / 1e6:8.2f} MB  in all, compressed"]) + "\n"


if __name__ == "__main__":
    rows = layers(sys.argv[1])
    sys.stdout.write(report(rows))
    sys.exit(len(sys.argv) > 2 and sum(size for size, _ in rows) > float(sys.argv[2]) * 1e6)
