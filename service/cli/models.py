"""wisp models: lists, pulls, converts, verifies and removes models."""

import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from service.cli.progress import progress_bar
from service.errors import ModelError
from service.models.catalogue import files_of, licence_of, origin_of
from service.models.names import find_model, model_candidates, repo_of
from service.models.places import EMBEDDED_NAME, Place, canonical_name, every_place, installed_models
from service.models.store import Record, damage, megabytes, remove, unfinished_folder
from service.settings import Settings

UNKNOWN = "unknown"
TOKEN_VARIABLE = "HF_TOKEN"

Write = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """One model of `wisp models list`."""

    name: str
    bytes: int
    licence: str
    origin: str
    folder: str  # or the only weights file
    serves: bool  # whether `wisp serve` would use it with these settings


def rows(settings: Settings) -> tuple[list[Row], str]:
    """Every model found here, and the reason if none would serve. Raises ModelError."""
    trouble, serving = "", None
    try:
        serving = model_candidates(settings)[0]
    except ModelError as error:
        trouble = str(error)
    try:
        places = every_place(settings.models_path())
    except OSError as error:
        raise ModelError(f"Cannot look for models: {error.filename}: {error.strerror}.") from None
    # For formats other than Hugging Face's, a folder's weights file stands for the folder.
    serves = [place for place in places if serving and serving.weights in (place.path, *files_of(place.path))][:1]
    if serving and not serves:
        serves = [Place(serving.name, serving.weights, "path")]
        places = [*serves, *places]
    return [_row(place, place in serves) for place in places], trouble


def list_models(settings: Settings, write: Write, style: str = "table") -> str:
    """Write a table, `json`, or `names` alone; return why no model would serve, or an empty string."""
    if style == "names":
        write("".join(f"{name}\n" for name in installed_models(settings.models_path())))
        return ""
    found, trouble = rows(settings)
    if style == "json":
        write(json.dumps([asdict(row) for row in found], indent=2, ensure_ascii=False) + "\n")
        return trouble
    table = [("NAME", "SIZE", "LICENCE", "FROM", "WHERE")]
    table += [(row.name, megabytes(row.bytes), row.licence, row.origin, _short(row.folder)) for row in found]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for mark, line in zip([" ", *("*" if row.serves else " " for row in found)], table, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        write(f"{mark} {'  '.join(cells).rstrip()}\n")
    return trouble


def _row(place: Place, serves: bool) -> Row:
    n_bytes = sum(path.stat().st_size for path in files_of(place.path))
    return Row(place.name, n_bytes, licence_of(place) or UNKNOWN, origin_of(place), str(place.path), serves)


def _short(path: str) -> str:
    """A path with `~` for the user's home, as shells accept it."""
    home = os.path.expanduser("~")  # noqa: PTH111 (Path's own raises for a user without a home)
    return f"~{path.removeprefix(home)}" if path.startswith(home + os.sep) and home != os.sep else path


def pull_model(
    settings: Settings, name: str, environment: Mapping[str, str], write: Write, *, revision: str = "main"
) -> None:
    """Install a model into the models' folder, with a progress bar. Raises ModelError for a bad name, HubError."""
    from service.models.hub import Hub  # HTTPX takes a third of a second
    from service.models.pull import Pull

    repo = repo_of(name)
    with Hub(settings.hub, environment.get(TOKEN_VARIABLE, "")) as hub:
        pull = Pull(hub, settings.models_path(), repo, revision)
        with progress_bar(pull.n_bytes, "B", pull.name) as bar:
            fetched = pull.fetch(bar.update)
    what = f"{pull.name} ({repo}@{pull.model.commit[:8]}, {megabytes(pull.n_bytes)}, {pull.model.licence or UNKNOWN})"
    write(f"{what} is in {pull.folder}\n" if fetched else f"{what} was already complete in {pull.folder}\n")


def convert_model(settings: Settings, name: str, folder: Path, dtype: str, write: Write) -> None:
    """Write a model into a new folder in another dtype. Raises ModelError."""
    from kernels.checkpoints.save import save_checkpoint
    from service.models.loaded import read_checkpoint, tokenizer_of

    checkpoint = read_checkpoint(find_model(name, settings.models_path()))
    tokenizer_of(checkpoint)  # report a broken one now, not in the server that will load it
    try:
        save_checkpoint(checkpoint, folder, dtype)
    except (ValueError, OverflowError) as error:
        raise ModelError(f"The model cannot be written: {error}.") from error
    except OSError as error:
        raise ModelError(f"The model cannot be written: {error.filename}: {error.strerror}.") from error
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    write(f"{name} in {dtype} ({megabytes(n_bytes)}) is in {folder}\n")


def verify_models(settings: Settings, names: Sequence[str], write: Write) -> Iterator[str]:
    """Hash the files of the given models, or of all, and compare them with their records; yields complaints."""
    found = _installed(settings, names)
    if not found:
        write(f"No model is installed in {settings.models_path()}.\n")
    for name, folder in found:
        record = Record.read(folder)
        if not folder.exists():
            yield f"{name}: incomplete, its download was interrupted; resume it with wisp models pull"
        elif record is None:
            sentence = f"{name}: not installed by wisp models pull, so there are no checksums to compare"
            if names:
                yield sentence
            else:
                write(sentence + "\n")
        elif phrases := damage(folder, record):
            yield f"{name}: {', '.join(phrases)}; fetch it again with wisp models pull {record.repo}"
        else:
            write(f"{name}: {len(record.sums)} files match {record.repo}\n")


def remove_models(
    settings: Settings, names: Sequence[str], write: Write, *, may: Callable[[str], bool]
) -> Iterator[str]:
    """Remove the named models, each if `may(question)`; yields complaints."""
    for name, folder in _installed(settings, names):
        if not may(f"Remove {folder}?"):
            yield f"{name}: not removed"
            continue
        try:
            remove(folder)
        except ModelError as error:
            yield str(error).rstrip(".")
        else:
            write(f"{name}: removed\n")


def _installed(settings: Settings, names: Sequence[str]) -> Collection[tuple[str, Path]]:
    """Name and folder of the given models, or of all; includes interrupted downloads. Raises ModelError."""
    models_dir = settings.models_path()
    found = installed_models(models_dir)
    chosen = {}
    for name in names or found:
        canonical = canonical_name(name.rpartition("/")[2])
        folder = found.get(canonical, models_dir / canonical)
        if canonical not in found and not unfinished_folder(folder).is_dir():
            if canonical == EMBEDDED_NAME:
                raise ModelError("The embedded model is part of Wisp: it is neither fetched nor removed.")
            have = ", ".join(sorted(found)) or "none"
            raise ModelError(f"No model '{name}' is installed in {models_dir}; there: {have}.")
        chosen[canonical] = folder
    return chosen.items()


def ask(question: str) -> bool:
    """Whether the user at the terminal agrees. Raises ModelError if there is no terminal."""
    if not sys.stdin.isatty():
        raise ModelError("There is no terminal to confirm on: pass --yes.")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
