"""The models' folder: each model's record of its origin and its files' checksums; removing a model."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelError

RECORD = "wisp.json"
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """What `wisp models pull` records next to a model."""

    hub: str
    repo: str
    commit: str
    licence: str | None
    pulled: str  # ISO 8601, UTC
    sums: Mapping[str, str]  # file name → SHA-256

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """The record in a model's folder; None if there is none or it cannot be read."""
        try:
            found = json.loads((folder / RECORD).read_text("utf-8"))
            return cls(**{**found, "sums": {str(name): str(digest) for name, digest in found["sums"].items()}})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, folder: Path) -> None:
        """Write it into the model's folder."""
        (folder / RECORD).write_text(json.dumps(vars(self), indent=2, ensure_ascii=False) + "\n", "utf-8")


def damage(folder: Path, record: Record) -> list[str]:
    """Hash a model's files again: one phrase for each that differs from the record."""
    found = []
    for name, digest in record.sums.items():
        try:
            if hash_file(folder / name) != digest:
                found.append(f"{name} has changed")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def megabytes(n_bytes: int) -> str:
    """151000000 → `151.0 MB`."""
    return f"{n_bytes / 1e6:.1f} MB"


def unfinished_folder(folder: Path) -> Path:
    """Where a model's files are collected until all are complete. Its name marks it as not a model."""
    return folder.with_name(f".{folder.name}.pull")


def removed_folder(folder: Path) -> Path:
    """Where a model's files are moved before removal, so that an interruption never leaves half a model."""
    return folder.with_name(f".{folder.name}.removed")


def remove(folder: Path) -> None:
    """Remove a model's folder and any broken download of it. Raises ModelError."""
    try:
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            gone = removed_folder(folder)
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone)
        if unfinished_folder(folder).is_dir():
            shutil.rmtree(unfinished_folder(folder))
    except OSError as error:
        raise ModelError(f"{error.filename or folder} cannot be removed: {error.strerror}.") from None


def hash_file(path: Path, also: Callable[[bytes], object] = lambda _: None) -> str:
    """A file's SHA-256 in hexadecimal; `also` gets each block too."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            also(block)
    return digest.hexdigest()
