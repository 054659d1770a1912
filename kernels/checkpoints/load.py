"""Whisper checkpoints: files of any supported format → named arrays in OpenAI's names and layouts."""

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.alignment_heads import default_heads
from kernels.checkpoints.common import (
    CheckpointError,
    Dimensions,
    NoTokenizer,
    Stored,
    UnknownFormat,
    expected_shapes,
    parse_json,
    read_text,
)
from kernels.checkpoints.kinds import SUFFIXES, format_of, other_kind
from kernels.checkpoints.quantised import Dequantised, Packed, Quantised

__all__ = ["MAX_BEAMS", "Checkpoint", "CheckpointError", "Dimensions", "load_checkpoint", "sinusoids"]

MAX_BEAMS = 16
FIRST_MULTILINGUAL_VOCAB = 51_865  # the English-only models have 51_864 tokens
WEIGHTS_NAMES = (  # a folder may have several: the first one is read
    "model.safetensors",
    "model.safetensors.index.json",
    "model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
POSITIONS = "encoder.positional_embedding"


@dataclass(frozen=True)
class Checkpoint:
    """One model: `arrays` are f16 or f32, Linear weights [out, in], conv weights [out, in, k].

    They are read-only views of the file, except quantised ones, which are dequantised at each access.
    """

    dims: Dimensions
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    tokenizer_json: str = field(repr=False)
    alignment_heads: tuple[tuple[int, int], ...]  # (layer, head) of the decoder's cross-attention
    is_multilingual: bool
    maps: tuple[mmap.mmap, ...] = field(default=(), repr=False)
    num_beams: int = 1  # to decode with; 1 is greedy
    condition_on_prev_tokens: bool = True  # whether the previous window's text prompts the next

    def release_pages(self) -> None:
        """Releases the mapped files' memory; arrays stay valid, and reading them faults their pages in again."""
        for mapped in self.maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def bytes_of(self, name: str) -> Quantised | None:
        """The tensor as int8 with one scale per row, as views of the file; None if it is stored differently."""
        return self.arrays.bytes_of(name) if isinstance(self.arrays, Dequantised) else None

    def release_copied(self) -> None:
        """Like release_pages(), after a target has taken the arrays, if most are copies: of quantised weights."""
        if isinstance(self.arrays, Dequantised) and self.arrays.is_packed:
            self.release_pages()


def sinusoids(length: int, channels: int, max_timescale: float = 10_000.0) -> NDArray[np.float32]:
    """(length, channels) sinusoidal positions, sines then cosines. Source: openai/whisper `model.py`."""
    increment = np.log(max_timescale) / (channels // 2 - 1)
    inverse = np.exp(-increment * np.arange(channels // 2))
    times = np.arange(length)[:, None] * inverse[None, :]
    return np.concatenate([np.sin(times), np.cos(times)], axis=1).astype(np.float32)


def load_checkpoint(
    weights: Path,
    *,
    config: Path | None = None,
    tokenizer: Path | None = None,
    tokenizer_for: Callable[[Dimensions], str | None] | None = None,
) -> Checkpoint:
    """Loads a .safetensors, .mpk, .mpk.gz or .pt file, ggml's, CTranslate2's or PyTorch's .bin, or a folder with one.

    `config` and `tokenizer` default to files beside the weights (config.json, or a Burn file's .cfg; tokenizer.json).
    `tokenizer_for` supplies the text of a tokenizer.json if there is none, as with OpenAI's .pt files.
    Checks all names, shapes, dtypes and lengths, but not the contents of a tokenizer.json, which takes as long to read
    as everything else. Raises CheckpointError, and nothing else, for a bad file.
    """
    try:
        if weights.is_dir():
            weights = _weights_in(weights)
    except OSError as error:
        raise CheckpointError(f"{weights}: cannot be read ({error.strerror or error})") from None
    stored = _read(weights, config)
    arrays = _checked(weights, stored)
    settings_path = weights.parent / "generation_config.json"
    settings = parse_json(settings_path, read_text(settings_path)) if settings_path.is_file() else {}
    multilingual = settings.get("is_multilingual")
    listed, listing = settings.get("alignment_heads"), settings_path
    if not listed:
        listed, listing = stored.alignment_heads, config or weights.parent / "config.json"
    return Checkpoint(
        stored.dims,
        arrays,
        _tokenizer_json(weights, tokenizer, stored, tokenizer_for),
        _alignment_heads(listing, listed, stored.dims) if listed else default_heads(weights, stored.dims),
        multilingual if isinstance(multilingual, bool) else stored.dims.n_vocab >= FIRST_MULTILINGUAL_VOCAB,
        stored.maps,
        _num_beams(settings_path, settings.get("num_beams", 1)),
        _condition_on_prev_tokens(settings_path, settings.get("condition_on_prev_tokens")),
    )


def _tokenizer_json(
    weights: Path,
    tokenizer: Path | None,
    stored: Stored,
    tokenizer_for: Callable[[Dimensions], str | None] | None,
) -> str:
    """The named file, else the format's own vocabulary, else the file beside the weights, else one for these dims."""
    if tokenizer is None and stored.make_tokenizer is not None:
        return stored.make_tokenizer()
    beside = weights.parent / "tokenizer.json"
    if tokenizer is not None or beside.exists():
        return read_text(tokenizer or beside)
    found = tokenizer_for(stored.dims) if tokenizer_for is not None else None
    if found is None:
        is_multilingual = stored.dims.n_vocab >= FIRST_MULTILINGUAL_VOCAB
        kind = "a multilingual" if is_multilingual else "an English-only"
        raise NoTokenizer(
            f"{beside}: cannot be read (No such file or directory), and {weights.name} has no vocabulary inside: put "
            f"there the tokenizer.json of {kind} Whisper of {stored.dims.n_vocab} tokens",
            is_multilingual=is_multilingual,
        )
    return found


def _weights_in(folder: Path) -> Path:
    """The weights file of a folder: one of the usual names, or the only one that could be one."""
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = [path for path in files if path.name.endswith(SUFFIXES)]
    if len(found) == 1:
        return found[0]
    trouble = f"{folder}: has no model.safetensors, and {len(found)} files of other formats to load"
    if found:
        listed = ", ".join(path.name for path in found[:5]) + ", …" * (len(found) > 5)
        raise UnknownFormat(f"{trouble} ({listed})")
    for path in files:
        kind = other_kind(path)
        if kind is not None:
            raise UnknownFormat(f"{trouble}; its {path.name} is {kind}")
    if any((folder / name).is_file() for name in ("vocabulary.txt", "vocabulary.json")):
        trouble += "; the model.bin of a CTranslate2 model is missing"
    raise CheckpointError(trouble)


def _read(weights: Path, config: Path | None) -> Stored:
    """Reads the file, importing only its format's reader."""
    if not weights.is_file():
        raise CheckpointError(f"{weights}: no such file")
    config_json = config or weights.parent / "config.json"
    match format_of(weights):
        case "ctranslate2":
            from kernels.checkpoints.ctranslate2 import read_ctranslate2

            return read_ctranslate2(weights, config_json)
        case "ggml":
            from kernels.checkpoints.ggml import read_ggml

            return read_ggml(weights)
        case "torch":
            from kernels.checkpoints.openai import read_torch

            return read_torch(weights, config_json)
        case "burn":
            from kernels.checkpoints.burn import read_burn

            return read_burn(weights, config or weights.parent / f"{weights.name.split('.mpk')[0]}.cfg")
        case _:
            from kernels.checkpoints.huggingface import read_huggingface

            return read_huggingface(weights, config_json)


def _checked(weights: Path, stored: Stored) -> Dequantised:
    """The stored tensors under OpenAI's names, with every name and shape checked against the dims."""
    arrays: dict[str, NDArray[Any] | Packed] = {}
    unknown = set(stored.arrays) - stored.ignored
    for name, shape in expected_shapes(stored.dims).items():
        theirs = stored.name_of(name)
        unknown.discard(theirs)
        array = stored.arrays.get(theirs)
        if array is None and name == POSITIONS:  # constant, so some files leave it out
            array = sinusoids(*shape)
        if array is None:
            instead = f"; it has an unknown {min(unknown)}" if len(unknown) == 1 else ""
            raise CheckpointError(f"{weights.name}: tensor {theirs} {list(shape)} is missing{instead}")
        if array.shape != shape:
            raise CheckpointError(
                f"{weights.name}: tensor {theirs} has shape {list(array.shape)}, expected {list(shape)}"
            )
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
        arrays[name] = array
    if unknown:
        raise CheckpointError(f"{weights.name}: tensor {min(unknown):.120} does not belong to a Whisper of these dims")
    return Dequantised(arrays)


def _alignment_heads(path: Path, listed: object, dims: Dimensions) -> tuple[tuple[int, int], ...]:
    """The pairs that a file lists. Raises CheckpointError unless they are heads of the model."""
    heads: list[tuple[int, int]] = []
    for pair in listed if isinstance(listed, list) else [None]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(item) is int for item in pair)):
            raise CheckpointError(f"{path.name}: alignment_heads must be a list of [layer, head] pairs")
        layer, head = pair
        if not (0 <= layer < dims.n_text_layer and 0 <= head < dims.n_text_head):
            raise CheckpointError(
                f"{path.name}: alignment head {pair} is not in {dims.n_text_layer} layers of {dims.n_text_head} heads"
            )
        heads.append((layer, head))
    return tuple(heads)


def _num_beams(path: Path, value: object) -> int:
    """Transformers' `num_beams` of a generation_config.json, at most `MAX_BEAMS`; 1 for null."""
    if value is None:
        return 1
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{path.name}: num_beams is {value!r:.40}, not a whole number above 0")
    return min(value, MAX_BEAMS)


def _condition_on_prev_tokens(path: Path, value: object) -> bool:
    """Transformers' `condition_on_prev_tokens` of a generation_config.json; True if absent, as in openai/whisper."""
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{path.name}: condition_on_prev_tokens is {value!r:.40}, not true or false")
    return value is not False
