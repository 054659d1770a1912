"""Installs a model from the hub into the models' folder: completely or not at all."""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.errors import HubError
from service.models.hub import Hub, HubFile, HubModel, part_of
from service.models.places import CTRANSLATE2_WEIGHTS, canonical_name
from service.models.store import Record, damage, megabytes, removed_folder, unfinished_folder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
VOCABULARIES = ("vocabulary.json", "vocabulary.txt")  # of CTranslate2 models without tokenizer.json
GENERATION = "generation_config.json"


def wanted_files(model: HubModel) -> list[HubFile]:
    """The files that Wisp needs from a repository in Hugging Face's or CTranslate2's layout, small files first.

    Raises HubError if it has neither layout.
    """
    there = model.files
    shards = filter(SHARD.fullmatch, sorted(there))
    if WEIGHTS in there or INDEX in there or CTRANSLATE2_WEIGHTS not in there:
        weights, words = [WEIGHTS] if WEIGHTS in there or INDEX not in there else [INDEX, *shards], TOKENIZER
    else:
        weights = [CTRANSLATE2_WEIGHTS]
        words = next((name for name in (TOKENIZER, *VOCABULARIES) if name in there), TOKENIZER)
    missing = [name for name in (CONFIG, words, weights[0]) if name not in there]
    if missing:
        raise HubError(
            f"{model.repo} has no {missing[0]}: it isn't a Whisper model in Hugging Face's or CTranslate2's layout."
        )
    names = (CONFIG, words, *(name for name in (GENERATION,) if name in there), *weights)
    return [there[name] for name in names]


def _check_kind(repo: str, config: Mapping[str, Any], files: list[HubFile]) -> None:
    """Raise HubError unless a config.json is of a Whisper model."""
    if any(file.name == CTRANSLATE2_WEIGHTS for file in files):
        if "suppress_ids" not in config:
            raise HubError(f"{repo} isn't a Whisper model: its {CONFIG} lacks suppress_ids, which CTranslate2 writes.")
    elif (kind := config.get("model_type")) != "whisper":
        raise HubError(f"{repo} isn't a Whisper model: its {CONFIG} says that it is '{kind}'.")


class Pull:
    """Installs one model from the hub into `models_dir`. Writes nothing before fetch()."""

    def __init__(self, hub: Hub, models_dir: Path, repo: str, revision: str = "main") -> None:
        """Ask the hub for the list of files. Raises HubError."""
        self._hub = hub
        self.model = hub.describe(repo, revision)
        self.files = wanted_files(self.model)
        self.n_bytes = sum(file.size for file in self.files)
        self.name = canonical_name(repo.rpartition("/")[2])
        self.folder = models_dir / self.name
        self._unfinished = unfinished_folder(self.folder)
        _check_kind(repo, hub.read(self.model, CONFIG), self.files)

    def fetch(self, gained: Callable[[int], object]) -> bool:
        """Download what is missing, then move the model into place; False if it was complete. `gained` gets the size of
        each block. Raises HubError, keeping the downloaded data for the next call to resume.
        """
        try:
            old = Record.read(self.folder)
            if os.path.lexists(self.folder) and old is None:
                raise HubError(
                    f"{self.folder} exists and was not made by wisp models pull: "
                    f"move it away, or remove it with wisp models remove {self.name}."
                )
            if old is not None and old.repo != self.model.repo:
                raise HubError(
                    f"{self.folder} contains {old.repo}, another repository's form of {self.name}: "
                    f"remove it first with wisp models remove {self.name}."
                )
            if old is not None and old.commit == self.model.commit and not damage(self.folder, old):
                gained(self.n_bytes)
                return False
            self._unfinished.mkdir(parents=True, exist_ok=True)
            with _locked(self._unfinished, self.name):
                self._fill(old, gained)
                _put(self._unfinished, self.folder)
        except OSError as error:
            raise HubError(f"{error.filename or self.folder} cannot be written: {error.strerror}.") from None
        return True

    def _fill(self, old: Record | None, gained: Callable[[int], object]) -> None:
        """Complete the unfinished folder."""
        for name in old.sums if old is not None else ():
            if not (self._unfinished / name).exists() and (self.folder / name).is_file():
                os.link(self.folder / name, self._unfinished / name)  # download() checks whether it is the right one
        self._check_space()
        sums = {file.name: self._hub.download(self.model, file, self._unfinished, gained) for file in self.files}
        for other in self._unfinished.iterdir():  # of an older commit
            if other.name not in sums:
                other.unlink()
        model = self.model
        pulled = datetime.now(UTC).isoformat(timespec="seconds")
        Record(self._hub.url, model.repo, model.commit, model.licence, pulled, sums).write(self._unfinished)

    def _check_space(self) -> None:
        there = 0
        for file in self.files:
            for path in (self._unfinished / file.name, part_of(self._unfinished, self.model, file)):
                there += path.stat().st_size if path.exists() else 0
        needed, free = self.n_bytes - there, shutil.disk_usage(self._unfinished).free
        if needed > free:
            raise HubError(
                f"{self.name} needs {megabytes(needed)} more in {self.folder.parent}, where {megabytes(free)} are free."
            )


def _put(unfinished: Path, folder: Path) -> None:
    """Move the finished folder into place and remove the previous one."""
    old = removed_folder(folder)
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(folder):
        folder.rename(old)
    unfinished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Lock the folder for this process. Raises HubError if another has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HubError(f"Another command is fetching {name} now.") from None
        yield
    finally:
        os.close(handle)
