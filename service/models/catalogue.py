"""All models: the ones that the settings name and the ones found here, each by its names."""

import dataclasses
import functools
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelError
from service.models.names import ModelSpec, find_model, parse_preload, spec_of
from service.models.packaged import ORIGIN
from service.models.places import Place, canonical_name, every_place, watched
from service.models.store import Record
from service.settings import Settings

log = logging.getLogger("wisp")

NAMED = "settings"  # the source of a model that a setting names and that is in none of the places
BESIDE = (".json", ".cfg")  # files next to a weights file
MAX_CARD_BYTES = 1 << 16
CARD_LICENCE = re.compile(r"^license:\s*['\"]?([\w.-]{1,80})", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Entry(Place):
    """One model: the name that lists show, its files, and who put them there: a place, or NAMED."""

    spec: ModelSpec

    def n_bytes(self) -> int:
        """On disk."""
        return sum(_stamp(path)[-1] for path in files_of(self.path))

    def state(self) -> tuple[object, ...]:
        """A value that changes with its files."""
        named = [path for path in (self.spec.config, self.spec.tokenizer) if path is not None]
        beside = [] if self.path.is_dir() else [path for path in self.path.parent.glob("*") if path.suffix in BESIDE]
        return tuple(_stamp(path) for path in (self.path, *files_of(self.path), *named, *sorted(beside)))

    def licence(self) -> str | None:
        """As the hub or the model's card says, else None."""
        return licence_of(self)

    def may_know_others(self) -> bool:
        """Whether it may know a language other than English, by its name."""
        return self.source != "Wisp" and not canonical_name(self.name).endswith("_en")

    def languages(self) -> tuple[str, ...]:
        """Whisper's codes of its languages. Reads its files if they have changed; raises ModelError."""
        return _languages(self.spec, self.state())


class Catalogue:
    """Thread-safe. Searches folders when first needed, and again when they have changed."""

    def __init__(self, settings: Settings, default: Callable[[], ModelSpec]) -> None:
        """`default`: the model of requests that name none."""
        self._settings, self._default = settings, default
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._entries: tuple[Entry, ...] = ()  # the default first

    @property
    def default(self) -> Entry:
        """The model of requests that name none. Touches no disk."""
        spec = self._default()
        first = self._entries[:1]
        return first[0] if first and first[0].spec is spec else Entry(spec.name, spec.weights, NAMED, spec=spec)

    def entries(self) -> Sequence[Entry]:
        """All models, the default first; if a folder can't be searched, the models found before."""
        with self._lock:
            models_dir, default = self._settings.models_path(), self._default()
            seen = (default, *(_stamp(path) for path in watched(models_dir)))
            if seen != self._seen:
                try:
                    self._entries = tuple(self._look(models_dir, default))
                except (OSError, ModelError) as error:
                    log.error("cannot look for models: %s", error)
                    self._entries = (self.default, *self._entries[1:])
                self._seen = seen
            return self._entries

    def check_settings(self) -> None:
        """Raise ModelError if a model that the settings name is missing."""
        for name in self._settings.models()[1:]:
            find_model(name, self._settings.models_path())
        parse_preload(self._settings.preload)

    def is_named(self, entry: Entry) -> bool:
        """Whether a setting names the model."""
        return any(spec.weights == entry.spec.weights for spec in self._named())

    def find(self, named: str) -> Entry | None:
        """The model called `named`: by its repository, by its name in any spelling, or with another owner before it.

        None if there is none.
        """
        default = self.default
        if "/" not in named and canonical_name(named) == canonical_name(default.name):
            return default
        entries = self.entries()
        by_repo = {entry.repo.lower(): entry for entry in reversed(entries)}
        if "/" in named and named.lower() in by_repo:
            return by_repo[named.lower()]
        by_name = {canonical_name(entry.name): entry for entry in reversed(entries)}
        bare = named.lower().rpartition("/")[2]
        spellings = (named, bare, bare.removeprefix("faster-"))
        return next((by_name[name] for name in map(canonical_name, spellings) if name in by_name), None)

    def _look(self, models_dir: Path, default: ModelSpec) -> Iterator[Entry]:
        """Each model once, in lookup order. Raises OSError for `models_dir`."""
        places = [(place, spec_of(place, models_dir)) for place in every_place(models_dir)]
        taken: set[str] = set()
        files: set[Path] = set()

        def is_new(key: str, spec: ModelSpec) -> bool:
            if not key or key in taken or spec.weights in files:
                return False
            taken.add(key)
            files.add(spec.weights)
            return True

        for spec in (default, *self._named()):
            if is_new(canonical_name(spec.name), spec):
                place = next((place for place, own in places if own.weights == spec.weights), None)
                place = place or Place(spec.name, spec.weights, NAMED)
                yield Entry(spec.name, place.path, place.source, _repo(place), spec=spec)
        for place, spec in places:
            repo = _repo(place)
            # If two have the same name, the second is called by its repository's.
            for name, key in ((place.name, place.name), (repo, repo.lower())):
                if is_new(key, spec):
                    yield Entry(name, place.path, place.source, repo, spec=dataclasses.replace(spec, name=name))

    def _named(self) -> Iterator[ModelSpec]:
        """The models that the settings name after the default, without missing ones."""
        for name in self._settings.models()[1:]:
            try:
                yield find_model(name, self._settings.models_path())
            except ModelError as error:
                log.error("%s", error)
        if self._settings.preload:
            yield from parse_preload(self._settings.preload)


def licence_of(place: Place) -> str | None:
    """The licence of a model by the hub or the model's card, else None."""
    record = Record.read(place.path)
    if record is not None:
        return record.licence
    if place.source in ("package", "Wisp"):
        return "mit"
    try:
        with (place.path / "README.md").open("rb") as card:
            front = card.read(MAX_CARD_BYTES).decode("utf-8", "replace").split("\n---", 1)[0]
    except OSError:
        return None
    found = CARD_LICENCE.search(front) if front.startswith("---") else None
    return found[1] if found else None


def origin_of(place: Place) -> str:
    """Where a model is from: the repository and commit, or the cache or folder it is in."""
    record = Record.read(place.path)
    if record is not None:
        return f"{record.repo}@{record.commit[:8]}"
    return {"package": ORIGIN, "Wisp": "comes with Wisp"}.get(place.source, place.repo or place.source)


def files_of(path: Path) -> list[Path]:
    """A file itself, or all files in a folder and below it."""
    if path.is_dir():
        try:
            return [file for file in sorted(path.rglob("*")) if file.is_file()]
        except OSError:  # being removed
            return []
    return [path] if path.is_file() else []


def _repo(place: Place) -> str:
    record = Record.read(place.path) if not place.repo else None
    return record.repo if record is not None else place.repo


def _stamp(path: Path) -> tuple[str, int, int, int]:
    """Path, times when its content and its rights last changed, bytes; zeros if it doesn't exist."""
    try:
        status = path.stat()
    except OSError:
        return (str(path), 0, 0, 0)
    return (str(path), status.st_mtime_ns, status.st_ctime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _languages(spec: ModelSpec, state: tuple[object, ...]) -> tuple[str, ...]:
    """Cached by `state`. Checksums are compared when the model is loaded, not here."""
    from service.models.loaded import read_checkpoint, tokenizer_of

    tokenizer = tokenizer_of(read_checkpoint(dataclasses.replace(spec, sums={})))
    return tuple(tokenizer.languages) or ("en",)
