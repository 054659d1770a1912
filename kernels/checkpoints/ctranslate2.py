"""CTranslate2's model.bin, which faster-whisper reads: float weights as mapped views, int8 and int16 with scales.

Source of the layout: OpenNMT/CTranslate2, `python/ctranslate2/specs/model_spec.py` and `src/models/model.cc`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.common import (
    FLOATS,
    CheckpointError,
    Dimensions,
    Stored,
    UnknownFormat,
    brief,
    check_dims,
    json_value,
    map_file,
    parse_json,
    read_text,
    tensor_at,
)
from kernels.checkpoints.quantised import Quantised
from kernels.checkpoints.vocabulary import bytes_of, tokenizer_json
from kernels.checkpoints.walk import Walk

VERSION = 6  # of the file's layout; the only one since CTranslate2 supports Whisper
SPEC, REVISIONS = "WhisperSpec", (1, 2, 3)  # they differ in config.json, not in the tensors
MAX_VARIABLES = 1 << 16  # large-v3 in int8 has 1,900
MAX_TOKEN_CHARACTERS = 256  # the longest of GPT-2's has 128
SCALE = "_scale"
PROJECTION, EMBEDDINGS = "decoder/projection/weight", "decoder/embeddings/weight"
_DTYPES = ("F32", "I8", "I16", "I32", "F16", "BF16")
_CODES = {**FLOATS, "I8": ("<i1", 1), "I16": ("<i2", 2), "I32": ("<i4", 4)}
_FLAGS = {  # scalars that change the computation, and Whisper's values of them
    "decoder/activation": (1, 3),  # GELU, by its number until February 2023, and since
    "decoder/pre_norm": (1,),
    "decoder/scale_embeddings": (0,),
    "decoder/start_from_zero_embedding": (0,),
    "decoder/alibi": (0,),
}
_IGNORED = frozenset({"decoder/alignment_heads", "decoder/alignment_layer"})  # config.json has them more exactly
_STEMS = {  # OpenAI's part of a tensor name → CTranslate2's, and in brackets the rows of maps that are stored as one
    "token_embedding": "embeddings",
    "ln_post": "layer_norm",
    "ln": "layer_norm",
    "attn_ln": "self_attention/layer_norm",
    "attn.query": "self_attention/linear_0 (query)",
    "attn.key": "self_attention/linear_0 (key)",
    "attn.value": "self_attention/linear_0 (value)",
    "attn.out": "self_attention/linear_1",
    "cross_attn_ln": "attention/layer_norm",
    "cross_attn.query": "attention/linear_0",
    "cross_attn.key": "attention/linear_1 (key)",
    "cross_attn.value": "attention/linear_1 (value)",
    "cross_attn.out": "attention/linear_2",
    "mlp_ln": "ffn/layer_norm",
    "mlp.0": "ffn/linear_0",
    "mlp.2": "ffn/linear_1",
}
_NORM = {"weight": "gamma", "bias": "beta"}
# Linear maps that are stored as one: the rest of the name → the parts, in order.
_JOINED = {"self_attention/linear_0": ("query", "key", "value"), "attention/linear_1": ("key", "value")}

Tensor = NDArray[Any] | Quantised


def ctranslate2_name(name: str) -> str:
    """OpenAI's tensor name as CTranslate2 writes it, and in brackets the part, if several maps are stored as one.

    decoder.blocks.0.attn.key.weight → decoder/layer_0/self_attention/linear_0/weight (key).
    """
    half, rest = name.split(".", 1)
    if rest == "positional_embedding":
        return f"{half}/position_encodings/encodings"
    if rest.startswith("blocks."):
        _, layer, rest = rest.split(".", 2)
        half = f"{half}/layer_{layer}"
    stem, _, last = rest.rpartition(".")
    theirs, bracket, part = _STEMS.get(stem, stem).partition(" (")
    return f"{half}/{theirs}/{_NORM[last] if theirs.endswith('layer_norm') else last}{bracket}{part}"


def read_ctranslate2(weights: Path, config: Path) -> Stored:
    """The tensors of a model.bin, the alignment heads in its config.json, and the vocabulary next to it.

    Raises CheckpointError unless it is a whole, consistent Whisper; UnknownFormat for another model.
    """
    walk = Walk(weights, data := map_file(weights))
    variables = _variables(walk)
    dims = _dims(weights, variables)
    flags = {name: variables.pop(name) for name in [*variables] if variables[name].ndim == 0 and SCALE not in name}
    _check_flags(weights, flags)
    settings = parse_json(config, read_text(config)) if config.is_file() else {}
    return Stored(
        dims,
        _split(weights, _scaled(weights, variables), dims.n_text_state),
        ctranslate2_name,
        maps=(data,),
        make_tokenizer=_vocabulary(weights, dims),
        alignment_heads=settings.get("alignment_heads"),
    )


def _variables(walk: Walk) -> dict[str, NDArray[Any]]:
    """Every variable of the file by name, as views of the mapped file (bf16: f32), with aliases resolved."""
    path = walk.path
    (version,) = walk.numbers("I")
    if version != VERSION:
        raise UnknownFormat(f"{path.name}: is of CTranslate2's binary version {version}, expected {VERSION}")
    spec, (revision,) = _name(walk), walk.numbers("I")
    if spec != SPEC or revision not in REVISIONS:
        raise UnknownFormat(
            f"{path.name}: holds a CTranslate2 model of another kind ({spec:.40}, revision {revision}), not a Whisper "
            f"({SPEC}, revision 1 to {REVISIONS[-1]})"
        )
    (count,) = walk.numbers("I")
    if count > MAX_VARIABLES:
        raise CheckpointError(f"{path.name}: claims {count} variables")
    variables: dict[str, NDArray[Any]] = {}
    for _ in range(count):
        name, (rank,) = _name(walk), walk.numbers("B")
        shape = walk.numbers(f"{rank}I")
        kind, n_bytes = walk.numbers("BI")
        if name in variables:
            raise CheckpointError(f"{path.name}: has tensor {name} twice")
        dtype = _DTYPES[kind] if kind < len(_DTYPES) else f"number {kind}"
        begin = walk.take(n_bytes)
        variables[name] = tensor_at(path, name, walk.data, dtype, shape, begin, walk.position, _CODES)
    (count,) = walk.numbers("I")
    if count > MAX_VARIABLES:
        raise CheckpointError(f"{path.name}: claims {count} aliases")
    for _ in range(count):
        alias, meant = _name(walk), _name(walk)
        if meant not in variables:
            raise CheckpointError(f"{path.name}: tensor {alias} is an alias of {meant}, which is missing")
        for suffix in ("", SCALE):
            if meant + suffix in variables:
                variables[alias + suffix] = variables[meant + suffix]
    if walk.position != len(walk.data):
        raise CheckpointError(f"{path.name}: has {len(walk.data) - walk.position} bytes after its end")
    return variables


def _name(walk: Walk) -> str:
    """A u16 length that counts a closing NUL, and the bytes."""
    (length,) = walk.numbers("H")
    return walk.name(length)


def _dims(path: Path, variables: Mapping[str, NDArray[Any]]) -> Dimensions:
    """The sizes, from the shapes of some tensors and two scalars."""

    def size(name: str, axis: int) -> int:
        shape = variables[name].shape if name in variables else ()
        if axis >= len(shape):
            raise CheckpointError(f"{path.name}: tensor {name} is missing or has shape {list(shape)}")
        return int(shape[axis])

    def number(name: str) -> int:
        if name not in variables or variables[name].ndim or variables[name].dtype.kind != "i":
            raise CheckpointError(f"{path.name}: the number {name} is missing")
        return int(variables[name])

    def layers(half: str) -> int:
        prefix = f"{half}/layer_"
        numbers = {name.removeprefix(prefix).split("/")[0] for name in variables if name.startswith(prefix)}
        return max((int(number) + 1 for number in numbers if number.isdecimal() and len(number) < 5), default=0)

    sizes = {
        "n_mels": size("encoder/conv1/weight", 1),
        "n_audio_ctx": size("encoder/position_encodings/encodings", 0),
        "n_audio_state": size("encoder/conv1/weight", 0),
        "n_audio_head": number("encoder/num_heads"),
        "n_audio_layer": layers("encoder"),
        "n_vocab": size(EMBEDDINGS, 0),
        "n_text_ctx": size("decoder/position_encodings/encodings", 0),
        "n_text_state": size(EMBEDDINGS, 1),
        "n_text_head": number("decoder/num_heads"),
        "n_text_layer": layers("decoder"),
    }
    return check_dims(path, sizes)


def _check_flags(path: Path, flags: Mapping[str, NDArray[Any]]) -> None:
    """Raise CheckpointError for a scalar that asks for other arithmetic than Whisper's."""
    for name, value in flags.items():
        known = name in _IGNORED or name.endswith("/num_heads")
        if not known and value.item() not in _FLAGS.get(name, (0,)):
            raise CheckpointError(f"{path.name}: {name:.80} is {brief(value.item())}, which no Whisper has")


def _scaled(path: Path, variables: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """The tensors, with each quantised one joined to its scale: a weight is its value times the scale of its row."""
    scaled: dict[str, Tensor] = {}
    for name, array in variables.items():
        scale = variables.get(name + SCALE)
        if array.dtype.kind != "i":
            of = variables.get(name.removesuffix(SCALE)) if name.endswith(SCALE) else None
            if of is None or of.dtype.kind != "i":
                scaled[name] = array
            continue
        if scale is None or array.itemsize > 2 or array.ndim < 2:
            raise CheckpointError(f"{path.name}: tensor {name:.120} has dtype {array.dtype} and no scale beside it")
        if scale.shape not in ((), array.shape[:1]) or scale.dtype != np.float32:
            raise CheckpointError(
                f"{path.name}: tensor {name:.120} of shape {list(array.shape)} cannot be scaled by"
                f" {scale.dtype} {list(scale.shape)}, expected float32 [{len(array)}]"
            )
        least = np.iinfo(array.dtype).max / np.finfo(np.float32).max  # below it a weight would be infinite
        if not (np.isfinite(scale) & (scale > least)).all():
            raise CheckpointError(f"{path.name}: tensor {name:.120} has a scale that is not a number above 0")
        steps = np.broadcast_to(np.reciprocal(scale), array.shape[:1])
        scaled[name] = Quantised(array, steps[:, None])
    projection, table = variables.get(PROJECTION), variables[EMBEDDINGS]
    if projection is not None and projection is not table:
        raise CheckpointError(f"{path.name}: {PROJECTION} is not {EMBEDDINGS}, to which Whisper ties it")
    scaled.pop(PROJECTION, None)
    return scaled


def _split(path: Path, tensors: Mapping[str, Tensor], n_state: int) -> dict[str, Tensor]:
    """Joined linear maps as one tensor each: row views of the stored one, without a copy."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition("/")
        parts = next((parts for joined, parts in _JOINED.items() if stem.endswith(f"/{joined}")), None)
        if parts is None:
            split[name] = tensor
            continue
        shape = (len(parts) * n_state, n_state)[: len(tensor.shape)]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{path.name}: tensor {name:.120} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
        for index, part in enumerate(parts):
            # A bias of the keys adds the same to all of a query's scores, which the softmax takes away again.
            if not (part == "key" and last == "bias"):
                split[f"{name} ({part})"] = tensor[index * n_state : (index + 1) * n_state]
    return split


def _vocabulary(weights: Path, dims: Dimensions) -> Callable[[], str] | None:
    """Makes a tokenizer.json from the vocabulary next to the weights; None if there already is one or no vocabulary."""
    if (weights.parent / "tokenizer.json").is_file():
        return None
    for name in ("vocabulary.json", "vocabulary.txt"):
        path = weights.parent / name
        if path.is_file():
            return lambda: _tokenizer_json(path, dims)
    return None


def _tokenizer_json(path: Path, dims: Dimensions) -> str:
    """A vocabulary in rank order; tokens are written as GPT-2 does, with a printable character per byte."""
    text = read_text(path)
    if path.suffix == ".json":
        tokens = json_value(path, text)
    else:
        tokens = text.removesuffix("\n").split("\n")
        if all(token.endswith("\r") for token in tokens):
            tokens = [token[:-1] for token in tokens]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"{path.name}: is not a list of tokens")
    if len(tokens) != dims.n_vocab:
        raise CheckpointError(f"{path.name}: has {len(tokens)} tokens, expected {dims.n_vocab}")
    if max(map(len, tokens)) > MAX_TOKEN_CHARACTERS:
        raise CheckpointError(f"{path.name}: has a token of {max(map(len, tokens))} characters")
    return tokenizer_json(path, bytes_of(path, tokens), dims.n_vocab, dims.n_audio_ctx)
