"""Downloads a model's files and checks each one's SHA-256, for images with a model other than the default ones.

usage: fetch_model.py URL FOLDER NAME:SHA256,…    each file is fetched from URL/NAME; spaces separate them too
"""

import hashlib
import sys
import urllib.request
from pathlib import Path

BLOCK_BYTES = 1 << 20


def fetch(url: str, digest: str, target: Path) -> None:
    """Download one file. Raises ValueError, and keeps no file, if its SHA-256 isn't `digest`."""
    found = hashlib.sha256()
    with urllib.request.urlopen(url) as response, target.open("wb") as file:
        while block := response.read(BLOCK_BYTES):
            found.update(block)
            file.write(block)
    if found.hexdigest() != digest:
        target.unlink()
        raise ValueError(f"{url} has the SHA-256 {found.hexdigest()}, not {digest}")


def fetch_model(base: str, folder: Path, sums: str) -> None:
    """Download every NAME:SHA256 of `sums` into `folder`. Raises ValueError or OSError."""
    files = sums.replace(",", " ").split()
    if not base or not files:
        raise ValueError("a model to fetch needs the build arguments MODEL_URL and MODEL_SHA256")
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        name, _, digest = file.partition(":")
        fetch(f"{base.rstrip('/')}/{name}", digest, folder / name)


if __name__ == "__main__":
    try:
        fetch_model(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    except (OSError, ValueError) as error:
        sys.exit(f"fetch_model: {error}")
