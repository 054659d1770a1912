"""The models' folder: each model's record of where it is from and of its files' sums, and how one is taken away."""

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
    """What `wisp models pull` notes beside a model."""

    hub: str
    repo: str
    commit: str
    licence: str | None
    pulled: str  # ISO 8601, UTC
    sums: Mapping[str, str]  # file name → SHA-256

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """The record of a model's folder; None where there is none, or none that can be read."""
        try:
            found = json.loads((folder / RECORD).read_text("utf-8"))
            return cls(**{**found, "sums": {str(name): str(digest) for name, digest in found["sums"].items()}})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, folder: Path) -> None:
        """Note it in the model's folder."""
        (folder / RECORD).write_text(json.dumps(vars(self), indent=2, ensure_ascii=False) + "\n", "utf-8")


def damage(folder: Path, record: Record) -> list[str]:
    """What is wrong with a model's files, hashed anew: a phrase for each that is not what the record says."""
    found = []
    for name, digest in record.sums.items():
        try:
            if hash_file(folder / name) != digest:
                found.append(f"{name} is not what was fetched")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def megabytes(n_bytes: int) -> str:
    """151000000 → `151.0 MB`."""
    return f"{n_bytes / 1e6:.1f} MB"


def unfinished_folder(folder: Path) -> Path:
    """Where a model's files are gathered until it is whole. Its name keeps it from being taken for a model."""
    return folder.with_name(f".{folder.name}.pull")


def removed_folder(folder: Path) -> Path:
    """Where a model's files go on their way out, so that an interruption leaves no half a model in its place."""
    return folder.with_name(f".{folder.name}.removed")


def remove(folder: Path) -> None:
    """Remove a model's folder and what there is of a broken download of it. Raises ModelError."""
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
