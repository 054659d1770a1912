"""Shared by all checkpoint formats: the dims, the tensors they imply, the error, and bounded reading of files."""

import json
import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.quantised import Packed

MAX_JSON_BYTES = 64 << 20  # tokenizer.json of the multilingual models is 2.5 MB
MAX_LAYERS = 256
MAX_DIM = 1 << 20  # the largest Whisper has 51_866 tokens; over a million means a damaged file
FLOATS = {"F16": ("<f2", 2), "F32": ("<f4", 4), "BF16": ("<u2", 2)}  # dtype → NumPy's code, bytes
MAX_CTX = 65_535  # positions; Whisper's are 1500 and 448, and a GPU cannot launch more rows together


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one sentence naming the file, the tensor, what was expected and found."""

    may_be_damage = True  # whether fetching the files again could help


class UnknownFormat(CheckpointError):
    """A file of an unsupported kind, or of another kind of model."""

    may_be_damage = False


class NoTokenizer(CheckpointError):
    """Weights without a vocabulary, inside or next to them."""

    may_be_damage = False

    def __init__(self, message: str, *, is_multilingual: bool) -> None:
        super().__init__(message)
        self.is_multilingual = is_multilingual


@dataclass(frozen=True)
class Dimensions:
    """Whisper's sizes under OpenAI's names. The audio window is `2 * n_audio_ctx` frames of 10 ms."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int


@dataclass(frozen=True)
class Stored:
    """A format reader's result: tensors under the file's own names, and how those names follow from OpenAI's."""

    dims: Dimensions
    arrays: Mapping[str, NDArray[Any] | Packed]
    name_of: Callable[[str], str]  # OpenAI's tensor name → the file's
    ignored: frozenset[str] = frozenset()  # tensors that some files contain but a Whisper does not need
    maps: tuple[mmap.mmap, ...] = ()  # the mapped files behind the arrays
    make_tokenizer: Callable[[], str] | None = None  # makes a tokenizer.json, if the format contains a vocabulary
    alignment_heads: object = None  # as listed in the format's own configuration, unchecked


def brief(value: object) -> str:
    """A value from a damaged file, for its error message; only its type if it isn't plain.

    Never the text of a nested value, which a few hostile bytes can make longer than any memory.
    """
    plain = value if isinstance(value, list | tuple) else (value,)
    known = all(item is None or isinstance(item, str | int | float) for item in plain)
    return f"{value!r:.80}" if known else f"a {type(value).__name__}"


def check_dims(path: Path, values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Dimensions:
    """Dimensions from a file's configuration; `names`: OpenAI's name of a size → the file's. Raises CheckpointError."""
    names = names or {}
    sizes: dict[str, int] = {}
    for item in fields(Dimensions):
        name = names.get(item.name, item.name)
        value = values.get(name)
        limit = {"layer": MAX_LAYERS, "ctx": MAX_CTX}.get(item.name.rpartition("_")[2], MAX_DIM)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise CheckpointError(f"{path.name}: {name} must be a whole number from 1 to {limit}, found {brief(value)}")
        sizes[item.name] = value
    dims = Dimensions(**sizes)
    if dims.n_audio_state != dims.n_text_state:
        raise CheckpointError(
            f"{path.name}: encoder and decoder differ in width ({dims.n_audio_state} and {dims.n_text_state})"
        )
    for name, heads in (("n_audio_head", dims.n_audio_head), ("n_text_head", dims.n_text_head)):
        if dims.n_text_state % heads or dims.n_text_state % 2:
            raise CheckpointError(
                f"{path.name}: a width of {dims.n_text_state} does not divide into {name} = {heads} heads"
            )
    return dims


def expected_shapes(dims: Dimensions) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Whisper with these dims: OpenAI's name → shape (Linear weight [out, in], conv [out, in, k])."""
    state = dims.n_audio_state
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (state, dims.n_mels, 3),
        "encoder.conv1.bias": (state,),
        "encoder.conv2.weight": (state, state, 3),
        "encoder.conv2.bias": (state,),
        "encoder.positional_embedding": (dims.n_audio_ctx, state),
    }

    def linear(name: str, n_out: int, n_in: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (n_out, n_in)
        if bias:
            shapes[f"{name}.bias"] = (n_out,)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (state,)

    def block(name: str, attentions: tuple[str, ...]) -> None:
        for attention in attentions:
            for part in ("query", "key", "value", "out"):
                linear(f"{name}.{attention}.{part}", state, state, bias=part != "key")
            layer_norm(f"{name}.{attention}_ln")
        linear(f"{name}.mlp.0", 4 * state, state)
        linear(f"{name}.mlp.2", state, 4 * state)
        layer_norm(f"{name}.mlp_ln")

    for layer in range(dims.n_audio_layer):
        block(f"encoder.blocks.{layer}", ("attn",))
    layer_norm("encoder.ln_post")
    shapes["decoder.token_embedding.weight"] = (dims.n_vocab, state)
    shapes["decoder.positional_embedding"] = (dims.n_text_ctx, state)
    for layer in range(dims.n_text_layer):
        block(f"decoder.blocks.{layer}", ("attn", "cross_attn"))
    layer_norm("decoder.ln")
    return shapes


def map_file(path: Path) -> mmap.mmap:
    """The file as a read-only mapping: pages are read when used and can be dropped. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def read_text(path: Path) -> str:
    """A small text file, UTF-8. Raises CheckpointError when missing, too large or not text."""
    try:
        if path.exists() and not path.is_file():  # a device may be endless, and a pipe cannot be sized
            raise CheckpointError(f"{path}: is not a regular file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB")
        return path.read_bytes().decode()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: is not UTF-8 text") from None


def json_value(path: Path, text: str | bytes) -> Any:
    """Parse the JSON in `text`; errors name `path`. Raises CheckpointError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is not valid JSON") from None


def parse_json(path: Path, text: str | bytes) -> dict[str, Any]:
    """Parse the JSON object in `text`; errors name `path`. Raises CheckpointError."""
    value = json_value(path, text)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return value


def tensor_at(
    path: Path,
    name: str,
    data: bytes | bytearray | mmap.mmap,
    dtype: str,
    shape: tuple[int, ...],
    begin: int,
    end: int,
    dtypes: Mapping[str, tuple[str, int]] = FLOATS,
) -> NDArray[Any]:
    """The tensor in `data[begin:end]`, a view except for bf16, which NumPy lacks and which becomes f32.

    `dtype` is one of `dtypes`; bytes are little endian, rows first. Raises CheckpointError.
    """
    if dtype not in dtypes:
        *others, last = dtypes
        expected = f"{', '.join(others)} or {last}"
        raise CheckpointError(f"{path.name}: tensor {name:.120} has dtype {dtype:.40}, expected {expected}")
    code, itemsize = dtypes[dtype]
    if len(shape) > 4 or any(size < 1 for size in shape):
        raise CheckpointError(f"{path.name}: tensor {name:.120} has an impossible shape {shape!r:.80}")
    count = math.prod(shape)
    if not 0 <= begin <= end <= len(data) or end - begin != count * itemsize:
        raise CheckpointError(
            f"{path.name}: tensor {name:.120} of shape {shape!r:.80} needs {count * itemsize} bytes and is given"
            f" {end - begin} at byte {begin} of {len(data)}"
        )
    array = np.frombuffer(data, dtype=code, count=count, offset=begin).reshape(shape)
    return widen_bf16(array) if dtype == "BF16" else array


def widen_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bf16 bit patterns as f32, exactly: bf16 is the upper half of an f32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
