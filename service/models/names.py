"""The files that a model's name means: a preload string, a path, a model found here, or the default."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service.errors import ModelError
from service.models import places
from service.models.languages import language_code
from service.models.packaged import compare_sums, packaged_sums
from service.models.store import Record
from service.settings import Settings

log = logging.getLogger("wisp")

ENCODINGS = ("burn", "whisper", "ggml", "pytorch", "autodetect")  # WasmEdge's; the file's name decides the format
# openai/whisper's models, in Hugging Face's spelling; the repository is openai/whisper-NAME.
KNOWN_NAMES = (
    *("tiny.en", "tiny", "base.en", "base", "small.en", "small", "medium.en", "medium"),
    *("large-v2", "large-v3", "large-v3-turbo"),
)
PRELOAD_FORM = "NAME:ENCODING:TARGET:WEIGHTS[:CONFIG[:TOKENIZER[:LANGUAGE]]]"

TargetName = Literal["auto", "gpu", "cpu"]


@dataclass(frozen=True)
class ModelSpec:
    """A model to load: its name for clients and guests, and its files. A file that is None is next to the weights."""

    name: str
    weights: Path  # a file, or a Hugging Face folder
    config: Path | None = None
    tokenizer: Path | None = None
    language: str | None = None  # Whisper's code: the spoken language of requests that name none
    target: TargetName | None = None
    # SHA-256 by name of files in the folder; where to look for a vocabulary if the weights have none.
    sums: Mapping[str, str] = field(default_factory=dict, compare=False)
    models_dir: Path | None = field(default=None, compare=False)


def parse_preload(text: str) -> list[ModelSpec]:
    """WASMEDGE_WASINN_PRELOAD, e.g. `default:Burn:GPU:/tiny_en.mpk:/tiny_en.cfg:/tokenizer.json:en` → its models.

    One model per word. The encoding must be one of WasmEdge's for Whisper, in upper or lower case; the target is the
    GPU if it says so, else the CPU. Raises ModelError, naming the word.
    """
    specs: dict[str, ModelSpec] = {}
    for word in text.split():
        parts = word.split(":")
        if not 4 <= len(parts) <= 7 or not parts[0] or not parts[3]:
            raise ModelError(f"WASMEDGE_WASINN_PRELOAD: '{word}' is not of the form {PRELOAD_FORM}.")
        name, encoding, target, weights, config, tokenizer, language = [*parts, *[""] * (7 - len(parts))]
        if encoding.lower() not in ENCODINGS:
            known = ", ".join(ENCODINGS)
            raise ModelError(f"WASMEDGE_WASINN_PRELOAD: encoding '{encoding}' of '{name}' is not one of {known}.")
        if language and language_code(language) is None:
            raise ModelError(f"WASMEDGE_WASINN_PRELOAD: '{language}' of '{name}' isn't a language of Whisper.")
        if name in specs:
            raise ModelError(f"WASMEDGE_WASINN_PRELOAD: the name '{name}' is given twice.")
        specs[name] = ModelSpec(
            name,
            Path(weights),
            Path(config) if config else None,
            Path(tokenizer) if tokenizer else None,
            language_code(language),
            "gpu" if target.lower() == "gpu" else "cpu",
        )
    return list(specs.values())


def model_candidates(settings: Settings) -> list[ModelSpec]:
    """The model to serve, followed by those that may replace it if its files are damaged.

    The first model named by --model, WISP_MODEL or the preload string has no replacement. The defaults are tiny_en in
    the models folder, the packaged tiny.en and the embedded model, if present. Raises ModelError if there is none.
    """
    named = settings.models()
    if not named and (preloaded := parse_preload(settings.preload)):
        return preloaded[:1]
    models_dir = settings.models_path()
    if named:
        return [find_model(named[0], models_dir)]
    found = []
    with _looking("", models_dir):
        installed = places.installed_models(models_dir).get(places.DEFAULT_NAME)
        if installed is not None:
            found.append(spec_of(places.Place(places.DEFAULT_NAME, installed, "models folder"), models_dir))
    found += [spec_of(place, models_dir) for place in (*places.packaged(), *places.embedded())]
    if not found:
        raise ModelError("No model found: name one with --model, or fetch one with wisp models pull tiny.en.")
    return found


def find_model(named: str, models_dir: Path) -> ModelSpec:
    """The model called `named`: installed, at that path, packaged, or in another program's cache.

    Raises ModelError if there is none or a folder cannot be read.
    """
    with _looking(f" '{named}'", models_dir):
        return _find(named, models_dir)


@contextmanager
def _looking(what: str, models_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"Cannot look for the model{what}: {error.filename}: {error.strerror}; name a readable one "
            "with --model, or a folder of models with --models-dir."
        ) from None


def repo_of(name: str) -> str:
    """A model's repository on the hub: `owner/name` unchanged, or Hugging Face's spelling of an openai/whisper name.

    Raises ModelError for any other name.
    """
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return name
    canonical = places.canonical_name(name)
    for known in KNOWN_NAMES:
        if places.canonical_name(known) == canonical:
            return f"openai/whisper-{known}"
    known_names = ", ".join(KNOWN_NAMES)
    raise ModelError(f"Unknown model '{name}': give a repository of the hub as OWNER/NAME, or one of {known_names}.")


def _find(named: str, models_dir: Path) -> ModelSpec:
    canonical = places.canonical_name(named)
    if canonical in places.installed_models(models_dir) and (place := places.find_place(named, models_dir)) is not None:
        return spec_of(place, models_dir)
    path = Path(os.path.expanduser(named))  # noqa: PTH111 (Path's own raises for a user without a home)
    if path.is_dir():
        return spec_of(places.Place(places.canonical_name(path.resolve().name), path, "path"), models_dir)
    if path.is_file():
        return spec_of(places.Place(places.canonical_name(places.stem_of(path)), path, "path"), models_dir)
    if (place := places.find_place(named, models_dir)) is not None:
        return spec_of(place, models_dir)
    if canonical == places.EMBEDDED_NAME:
        if not (own := places.embedded()):
            raise ModelError("This installation has no embedded model (assets/embedded).")
        return spec_of(own[0], models_dir)
    is_repository = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", named) and not named.endswith(places.WEIGHTS_SUFFIXES)
    is_path = named.startswith(("~", ".")) or os.sep in named or named.endswith(places.WEIGHTS_SUFFIXES)
    if is_path and not is_repository:
        raise ModelError(f"{named} does not exist: name an existing model folder or weights file.")
    found = sorted({place.name for place in places.every_place(models_dir)})
    have = f"found here: {', '.join(found)}" if found else "no model was found here"
    raise ModelError(
        f"Model '{named}' not found: it isn't a folder or file, nor installed in {models_dir}, nor in the caches of "
        f"Hugging Face and openai/whisper ({have}). Fetch it with wisp models pull {named}, copy its folder to "
        f"{models_dir / places.canonical_name(named.rpartition('/')[2])}, or give the path of its folder or file."
    )


def spec_of(place: places.Place, models_dir: Path) -> ModelSpec:
    """The files of a place. Raises OSError."""
    weights = places.weights_in(place.path) if place.path.is_dir() else place.path
    sums = packaged_sums(place.path) if place.source == "package" else {}
    if weights == place.path and (record := Record.read(place.path)) is not None:
        sums = record.sums
    return ModelSpec(place.name, weights, sums=sums, models_dir=models_dir)


def check_files(spec: ModelSpec) -> None:
    """Raise ModelError for files that cannot be this model's whatever they contain: missing, or of a wrong kind."""
    trouble = f"The model '{spec.name}' cannot be loaded"
    if spec.sums:
        compare_sums(spec.weights, spec.sums)
    for role, path in (("weights", spec.weights), ("configuration", spec.config), ("tokenizer", spec.tokenizer)):
        if path is not None and _is_absent(path):
            raise ModelError(f"{trouble}: its {role} should be at {path}, which does not exist.")
    weights, config = spec.weights.name, spec.config.name if spec.config else ""
    of_burn = weights.endswith((".mpk", ".mpk.gz"))
    if (config.endswith(".cfg") and not of_burn) or (config == "config.json" and of_burn):
        raise ModelError(
            f"{trouble}: {config} does not go with {weights}; "
            "a .cfg goes with .mpk, and a config.json with .safetensors."
        )


def _is_absent(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # Path.exists() would raise; the loader reports an unreadable file better
        return False
    return False
