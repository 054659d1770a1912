"""Keeps the guest's machine code between starts, in a folder that no other user can write."""

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

MAX_ENTRIES = 4  # of different versions; older ones are removed
_DIGEST_BYTES = hashlib.sha256().digest_size


def user_cache_folder() -> Path | None:
    """This user's cache folder by the XDG rule; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(base).is_absolute():
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            return None
    return Path(base) / "wisp"


class CodeCache:
    """Machine code by key. It is executed unchecked, so an entry counts only if no other user could have written it.

    An entry is the SHA-256 of the code followed by the code; damaged files are ignored. An unusable folder costs a log
    line and a compilation at every start, nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> bytes | None:
        """The code stored under `key`, if it is whole and trusted, else None."""
        path = self._path(key)
        try:
            if not (_is_ours(self._folder) and _is_ours(path)):
                return None
            entry = path.read_bytes()
        except OSError:
            return None
        digest, code = entry[:_DIGEST_BYTES], entry[_DIGEST_BYTES:]
        return code if hashlib.sha256(code).digest() == digest else None

    def keep(self, key: str, code: bytes) -> None:
        """Store `code` under `key` atomically: another process sees all of it or nothing."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours(self._folder):
                raise PermissionError(f"{self._folder} belongs to, or can be written by, someone else")
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as part:
                part.write(hashlib.sha256(code).digest() + code)
            Path(part.name).replace(self._path(key))
            for old in sorted(self._folder.glob("*.cwasm"), key=_age)[MAX_ENTRIES:]:
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()
        except OSError as error:
            logger.info("the guest's machine code is not cached: %s", error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.cwasm"


def _age(path: Path) -> float:
    """Sorts newest first, files that are already gone last."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _is_ours(path: Path) -> bool:
    """Whether `path` itself (not a link's target) belongs to this user and only this user can write it."""
    status = path.lstat()
    return (
        not stat.S_ISLNK(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
