"""Finds Whisper models: in the models folder, in the package installed with Wisp, in other programs' caches."""

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.models.packaged import packaged_folder
from service.models.store import Record

log = logging.getLogger("wisp")

DEFAULT_NAME = "tiny_en"  # canonical name of the default model
EMBEDDED_NAME = "embedded"
EMBEDDED = Path(__file__).parents[2] / "assets" / EMBEDDED_NAME
WEIGHTS_SUFFIXES = (".safetensors", ".mpk", ".mpk.gz", ".pt", ".bin")
SYNONYMS = {"large": "large_v3", "turbo": "large_v3_turbo"}  # openai/whisper's
CTRANSLATE2_WEIGHTS = "model.bin"
HUGGINGFACE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FOLDER_WEIGHTS = (*HUGGINGFACE_WEIGHTS, CTRANSLATE2_WEIGHTS)  # of formats stored as a folder
HUB_OWNERS = ("openai/whisper-", "Systran/faster-whisper-")  # of repositories that a bare name may mean, in order
MAX_CONFIG_BYTES = 1 << 20
N_TIMESTAMPS = 1501  # 0.00 to 30.00 s in steps of 0.02: a vocabulary ends with them


@dataclass(frozen=True)
class Place:
    """A model that was found: its canonical name, its folder or weights file, and its origin."""

    name: str
    path: Path
    source: str  # "models folder", "package", "Hugging Face cache", "Whisper cache" or "Wisp"
    repo: str = ""  # OWNER/NAME, if it is from a hub


def canonical_name(name: str) -> str:
    """One spelling per model: `openai/whisper-tiny.en`, `Systran/faster-whisper-tiny.en`, `tiny.en` → `tiny_en`."""
    prefixes = r"^(openai/|systran/)?(ggml-|(faster[-_])?whisper[-_])?"
    canonical = re.sub(r"[-.]", "_", re.sub(prefixes, "", name.strip().lower()))
    return SYNONYMS.get(canonical, canonical)


def stem_of(path: Path) -> str:
    """A weights file's name without suffix; for the generic `model.safetensors` or `model.bin`, its folder's name."""
    suffix = next((suffix for suffix in WEIGHTS_SUFFIXES if path.name.endswith(suffix)), path.suffix)
    stem = path.name.removesuffix(suffix)
    return path.resolve().parent.name if stem == "model" else stem


def installed_models(models_dir: Path) -> dict[str, Path]:
    """Canonical name → path of every model folder and weights file in `models_dir`; empty if it does not exist.

    Names that start with a dot are skipped: unfinished downloads have one. Raises OSError.
    """
    if not models_dir.is_dir():
        return {}
    paths = [path for path in sorted(models_dir.iterdir()) if not path.name.startswith(".")]
    files = {
        canonical_name(stem_of(path)): path for path in paths if path.name.endswith(WEIGHTS_SUFFIXES) and path.is_file()
    }
    return files | {canonical_name(path.name): path for path in paths if path.is_dir()}


def weights_in(folder: Path) -> Path:
    """A folder's only weights file, if its format is a single file; else the folder, for its reader to check."""
    if any((folder / name).is_file() for name in FOLDER_WEIGHTS):
        return folder
    found = [path for path in sorted(folder.iterdir()) if path.name.endswith(WEIGHTS_SUFFIXES)]
    return found[0] if len(found) == 1 else folder


def packaged() -> list[Place]:
    """tiny.en as installed with Wisp, if it is."""
    folder = packaged_folder()
    return [Place(DEFAULT_NAME, folder, "package")] if folder else []


def embedded() -> list[Place]:
    """This source tree's small model, if it has one."""
    return [Place(EMBEDDED_NAME, EMBEDDED, "Wisp")] if EMBEDDED.is_dir() else []


def cached_by_hub() -> Iterator[Place]:
    """The Whisper models in Hugging Face's cache; HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME may set its path."""
    for folder in _folders(_hub_cache(), "models--*--*"):
        _, owner, name = folder.name.split("--", 2)
        snapshot = _snapshot(folder)
        if snapshot is not None and is_whisper(snapshot):
            yield Place(canonical_name(name), snapshot, "Hugging Face cache", f"{owner}/{name}")


def cached_by_whisper() -> Iterator[Place]:
    """Models that openai/whisper has downloaded: ~/.cache/whisper/NAME.pt."""
    for path in _folders(_cache_home() / "whisper", "*.pt"):
        yield Place(canonical_name(path.stem), path, "Whisper cache")


def every_place(models_dir: Path) -> list[Place]:
    """All models found, in the order in which names are looked up. Raises OSError for `models_dir`."""
    installed = [Place(name, path, "models folder") for name, path in installed_models(models_dir).items()]
    return [*installed, *packaged(), *cached_by_hub(), *cached_by_whisper(), *embedded()]


def watched(models_dir: Path) -> Iterator[Path]:
    """The folders and files whose change may mean that there are other models."""
    whisper = _cache_home() / "whisper"
    yield from (models_dir, *_folders(models_dir, "*"), _hub_cache(), whisper, *_folders(whisper, "*.pt"))
    for folder in _folders(_hub_cache(), "models--*--*"):
        yield from (folder, folder / "refs" / "main", folder / "snapshots", *_folders(folder / "snapshots", "*"))


def find_place(named: str, models_dir: Path) -> Place | None:
    """The model called `named`, in any spelling. A full OWNER/NAME means that repository if the hub's cache has it; a
    bare name may be in any place. Raises OSError for `models_dir`."""
    canonical = canonical_name(named)
    installed = installed_models(models_dir)
    for name, path in installed.items() if "/" in named else ():
        record = Record.read(path)
        if record is not None and record.repo.lower() == named.lower():
            return Place(name, path, "models folder", record.repo)
    if canonical in installed:
        return Place(canonical, installed[canonical], "models folder")
    if canonical == DEFAULT_NAME and (own := packaged()):
        return own[0]
    in_hub = {place.repo.lower(): place for place in cached_by_hub()}
    repositories = [named] if "/" in named else [owner + named for owner in HUB_OWNERS]
    spellings = [*repositories, *(owner + canonical.replace("_", "-") for owner in HUB_OWNERS)]
    for repo in spellings:
        if repo.lower() in in_hub:
            return in_hub[repo.lower()]
    others = [*in_hub.values(), *cached_by_whisper()] if "/" not in named else [*in_hub.values()]
    return next((place for place in others if place.name == canonical), None)


def is_whisper(folder: Path) -> bool:
    """Whether a folder contains a Whisper model: Hugging Face's by its config.json, CTranslate2's by its weights."""
    weights = folder / CTRANSLATE2_WEIGHTS
    try:
        if any((folder / name).is_file() for name in HUGGINGFACE_WEIGHTS):
            return _config(folder / "config.json").get("model_type") == "whisper"
        with weights.open("rb") as file:
            return b"WhisperSpec" in file.read(64)
    except OSError:
        return False


def tokenizer_for(n_vocab: int, models_dir: Path | None) -> str | None:
    """The tokenizer.json of any model found here with `n_vocab` tokens, for weights without one."""
    for place in every_place(models_dir or Path(os.devnull)):
        path = (place.path if place.path.is_dir() else place.path.parent) / "tokenizer.json"
        try:
            text = path.read_text("utf-8")
            added = {token["content"]: token["id"] for token in json.loads(text)["added_tokens"]}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
        if added.get("<|notimestamps|>", 0) + 1 + N_TIMESTAMPS == n_vocab:
            return text
    return None


def _config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            return {}
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _snapshot(folder: Path) -> Path | None:
    """The commit that a cached repository's `main` means, else the newest one."""
    try:
        commit = (folder / "refs" / "main").read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = ""
    snapshots = folder / "snapshots"
    if re.fullmatch(r"[0-9a-f]{7,64}", commit) and (snapshots / commit).is_dir():
        return snapshots / commit
    return max(_folders(snapshots, "*"), key=lambda path: path.stat().st_mtime, default=None)


def _folders(parent: Path, pattern: str) -> list[Path]:
    """Matches in a folder that may not exist or be readable; an unreadable cache of another program is skipped."""
    try:
        return sorted(parent.glob(pattern))
    except OSError as error:
        log.debug("%s cannot be looked into: %s", parent, error)
        return []


def _hub_cache() -> Path:
    if named := os.environ.get("HF_HUB_CACHE"):
        return _home(named)
    if named := os.environ.get("HF_HOME"):
        return _home(named) / "hub"
    return _cache_home() / "huggingface" / "hub"


def _cache_home() -> Path:
    return _home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def _home(path: str) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path's own raises for a user without a home)
