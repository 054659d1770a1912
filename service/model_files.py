"""Which files a model's name means: a preload string, a path, an installed name, or the embedded default."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.errors import ModelError
from service.languages import language_code
from service.settings import PRELOAD_VARIABLE, Settings

log = logging.getLogger("wisp")

DEFAULT_NAME = "tiny_en"  # taken when no model is named and it is installed
EMBEDDED_NAME = "embedded"
EMBEDDED = Path(__file__).parent.parent / "assets" / EMBEDDED_NAME
EMBEDDED_NOTICE = (
    "the small model that comes with Wisp, made mostly of synthetic voices, errs often on real speech; "
    "wisp models pull tiny.en fetches a better one, which the next start takes"
)
WEIGHTS_SUFFIXES = (".safetensors", ".mpk", ".mpk.gz", ".pt", ".bin")
ENCODINGS = ("burn", "whisper", "ggml", "pytorch", "autodetect")  # of WasmEdge's; the file's name tells the format
KNOWN_NAMES = (  # of openai/whisper's models, in Hugging Face's spelling; the repository is openai/whisper-NAME
    "tiny.en",
    "tiny",
    "base.en",
    "base",
    "small.en",
    "small",
    "medium.en",
    "medium",
    "large-v2",
    "large-v3",
    "large-v3-turbo",
)
SYNONYMS = {"large": "large_v3", "turbo": "large_v3_turbo"}  # openai/whisper's own
PRELOAD_FORM = "NAME:ENCODING:TARGET:WEIGHTS[:CONFIG[:TOKENIZER[:LANGUAGE]]]"

TargetName = Literal["auto", "gpu", "cpu"]


@dataclass(frozen=True)
class ModelSpec:
    """A model to load: its name towards clients and guests, and its files. A None file lies beside the weights."""

    name: str
    weights: Path  # a file, or a Hugging Face folder
    config: Path | None = None
    tokenizer: Path | None = None
    language: str | None = None  # Whisper's code: what requests that name none are taken to speak
    target: TargetName | None = None


def parse_preload(text: str) -> list[ModelSpec]:
    """WASMEDGE_WASINN_PRELOAD, e.g. `default:Burn:GPU:/tiny_en.mpk:/tiny_en.cfg:/tokenizer.json:en` → its models.

    One model a word. The encoding must be one of WasmEdge's for Whisper, in any case; the target is the GPU where it
    says so, else the CPU. Raises ModelError, naming the word.
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
            raise ModelError(f"WASMEDGE_WASINN_PRELOAD: '{language}' of '{name}' is no language of Whisper's.")
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


def canonical_name(name: str) -> str:
    """One spelling for a model's: `openai/whisper-tiny.en`, `whisper-tiny.en`, `tiny.en` → `tiny_en`."""
    canonical = re.sub(r"[-.]", "_", re.sub(r"^(openai/)?(whisper[-_])?", "", name.strip().lower()))
    return SYNONYMS.get(canonical, canonical)


def installed_models(models_dir: Path) -> dict[str, Path]:
    """Canonical name → folder of every model folder in `models_dir`; none where it does not exist.

    A name with a dot before it is no model's: what is being fetched lies in one.
    """
    if not models_dir.is_dir():
        return {}
    folders = (path for path in sorted(models_dir.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return {canonical_name(folder.name): folder for folder in folders}


def choose_model(settings: Settings) -> ModelSpec:
    """--model or WISP_MODEL, else the preload string's first model, else what find_model takes. Raises ModelError."""
    if not settings.model and settings.preload:
        preloaded = parse_preload(settings.preload)
        if len(preloaded) > 1:
            log.warning("%s names %d models; only the first one is served", PRELOAD_VARIABLE, len(preloaded))
        if preloaded:
            return preloaded[0]
    return find_model(settings.model, settings.models_path())


def find_model(named: str, models_dir: Path) -> ModelSpec:
    """The model to serve: the one named (installed, or a path), else installed tiny_en, else the embedded one.

    Raises ModelError if the one named, or the embedded one, is not there, or where a folder cannot be looked into.
    """
    try:
        return _find(named, models_dir)
    except OSError as error:
        what = f" '{named}'" if named else ""
        raise ModelError(
            f"Cannot look for the model{what}: {error.filename}: {error.strerror}; name one "
            "that can be read with --model, or a folder of models with --models-dir."
        ) from None


def repo_of(name: str) -> str:
    """The hub's repository of a model: `owner/name` as it is, a name of openai/whisper's as Hugging Face has it.

    Raises ModelError for any other name.
    """
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return name
    canonical = canonical_name(name)
    for known in KNOWN_NAMES:
        if canonical_name(known) == canonical:
            return f"openai/whisper-{known}"
    known_names = ", ".join(KNOWN_NAMES)
    raise ModelError(
        f"No model is known as '{name}': give a repository of the hub as OWNER/NAME, or one of {known_names}."
    )


def _find(named: str, models_dir: Path) -> ModelSpec:
    installed = installed_models(models_dir)
    if not named:
        if DEFAULT_NAME in installed:
            return ModelSpec(DEFAULT_NAME, _weights_in(installed[DEFAULT_NAME]))
        return _embedded()
    canonical = canonical_name(named)
    if canonical in installed:
        return ModelSpec(canonical, _weights_in(installed[canonical]))
    path = Path(os.path.expanduser(named))  # noqa: PTH111 (Path's own raises for a user without a home)
    if path.is_dir():
        return ModelSpec(canonical_name(path.resolve().name), _weights_in(path))
    if path.is_file():
        return ModelSpec(canonical_name(_stem(path)), path)
    if canonical == EMBEDDED_NAME:
        return _embedded()
    if named.startswith(("~", ".")) or os.sep in named.removeprefix("openai/") or named.endswith(WEIGHTS_SUFFIXES):
        raise ModelError(f"There is nothing at {named}: name a model's folder or weights file that is there.")
    have = f"it has {', '.join(sorted(installed))}" if installed else "nothing is installed there"
    raise ModelError(
        f"There is no model '{named}': it is no folder, no file, and not installed in {models_dir} ({have}). "
        f"Fetch it with wisp models pull {canonical}, put its Hugging Face folder there as {models_dir / canonical}, "
        "or name its folder or weights file."
    )


def check_files(spec: ModelSpec) -> None:
    """Raise ModelError for files that cannot be this model's, whatever is in them: absent, or of another sort."""
    trouble = f"The model '{spec.name}' cannot be loaded"
    for role, path in (("weights", spec.weights), ("configuration", spec.config), ("tokenizer", spec.tokenizer)):
        if path is not None and _is_absent(path):
            raise ModelError(f"{trouble}: its {role} should be at {path}, where nothing is.")
    weights, config = spec.weights.name, spec.config.name if spec.config else ""
    is_file = os.path.isfile(spec.weights)  # noqa: PTH113 (Path's own raises for a folder that is not ours)
    if is_file and not weights.endswith((*WEIGHTS_SUFFIXES, ".safetensors.index.json")):
        raise ModelError(
            f"{trouble}: {spec.weights} is no weights file; name a model's folder, "
            f"or a file ending in {', '.join(WEIGHTS_SUFFIXES)}."
        )
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
    except OSError:  # what Path.exists() would raise: the loader has words for a file that it cannot read
        return False
    return False


def _embedded() -> ModelSpec:
    if not EMBEDDED.is_dir():
        raise ModelError("This installation has no embedded model (assets/embedded): name one with --model FOLDER.")
    return ModelSpec(EMBEDDED_NAME, _weights_in(EMBEDDED))


def _stem(path: Path) -> str:
    """A weights file's name without its suffix; of the generic `model.safetensors`, its folder's name."""
    stem = next(
        (path.name.removesuffix(suffix) for suffix in WEIGHTS_SUFFIXES if path.name.endswith(suffix)), path.stem
    )
    return path.resolve().parent.name if stem == "model" else stem


def _weights_in(folder: Path) -> Path:
    """The folder itself if it is Hugging Face's, else its one weights file. ModelError for none or several."""
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        return folder
    found = sorted(path for path in folder.iterdir() if path.name.endswith(WEIGHTS_SUFFIXES))
    if len(found) != 1:
        listed = f"several weights files ({', '.join(path.name for path in found)})" if found else "no weights file"
        raise ModelError(
            f"The model folder {folder} has {listed}: it needs a model.safetensors, "
            f"or one file ending in {', '.join(WEIGHTS_SUFFIXES)}."
        )
    return found[0]
