"""Cuts installed Python packages down to what runs: libraries stripped; no tests, headers, stubs, build tools, caches.

usage: slim.py PACKAGES [APART NAME…]    a distribution that is named moves to the folder APART
"""

import csv
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

UNUSED = (
    "bin",  # commands: the image has one
    "**/tests",
    "**/include",
    "numpy/f2py",  # builds Fortran extensions
    "numpy/_core/lib",  # the C library to build against
    "numpy/random/lib",
    "numpy/_pyinstaller",
    "**/*.pyi",
    "**/*.pxd",
    "**/*.pyx",
    "**/*.c",
    "**/*.a",
    "**/__pycache__",
    "*.dist-info/RECORD",  # would name what is gone
    "*.dist-info/direct_url.json",
)


def move_apart(packages: Path, apart: Path, names: set[str]) -> None:
    """Move the distributions named to the folder `apart`. Raises LookupError if one is not installed."""
    found: dict[str, Distribution] = {found.name: found for found in distributions(path=[str(packages)])}
    if missing := names - set(found):
        raise LookupError(f"not installed: {', '.join(sorted(missing))}")
    for name in names:
        for path, _, _ in csv.reader((found[name].read_text("RECORD") or "").splitlines()):
            source, target = packages / path, apart / path
            if not path.startswith("..") and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, target)


def slim(packages: Path) -> None:
    """Remove what no request needs, then the symbols that no loader needs."""
    for pattern in UNUSED:
        for path in list(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():  # not gone with its folder
                path.unlink()
    # A wheel's own copies of shared libraries have been patched to be found; GNU strip leaves such files unloadable.
    libraries = [path for path in packages.rglob("*.so") if not path.is_symlink() and ".libs" not in path.parent.name]
    if libraries:
        subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)
    for folder in sorted((path for path in packages.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        move_apart(folder, Path(sys.argv[2]), set(sys.argv[3:]))
        slim(Path(sys.argv[2]))
    slim(folder)
