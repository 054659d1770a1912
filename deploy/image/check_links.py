"""Lists shared libraries missing from the root file system it runs in; exit code 1 if there are any."""

import subprocess
import sys
from pathlib import Path

LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")


def missing(loader: str, library: Path) -> list[str]:
    """The names that the loader cannot find for one library or program."""
    listing = subprocess.run([loader, "--list", str(library)], capture_output=True, text=True, check=False)
    return [line.split()[0] for line in listing.stdout.splitlines() if "not found" in line]


def main() -> int:
    """Ask the loader about everything under /usr."""
    loader = next(loader for loader in LOADERS if Path(loader).exists())
    broken = 0
    for path in sorted(Path("/usr").rglob("*.so*")):
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF":
            for name in missing(loader, path):
                sys.stderr.write(f"{path} needs {name}, which is missing\n")
                broken = 1
    return broken


if __name__ == "__main__":
    sys.exit(main())
