"""whisper.cpp's ggml .bin checkpoints: dims, mel filters, vocabulary and tensors in one file, floats or quantised.

The vocabulary is a list of byte strings in rank order, so a tokenizer.json is rebuilt from it.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.common import (
    MAX_DIM,
    CheckpointError,
    Stored,
    UnknownFormat,
    check_dims,
    map_file,
    tensor_at,
)
from kernels.checkpoints.ggml_blocks import BLOCK, LAYOUTS, Blocks
from kernels.checkpoints.quantised import Packed
from kernels.checkpoints.vocabulary import tokenizer_json
from kernels.checkpoints.walk import Walk

MAGIC_BYTES = 4  # by which the format was recognised
MAX_TOKEN_BYTES = 256  # the longest of GPT-2's has 128
HPARAMS = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"),
)
_LAYOUT_VERSION = 2  # of quantised types, in the thousands of ftype; 0 if a tool left it out
_TYPE_NAMES = (  # of a tensor, by number
    "f32 f16 q4_0 q4_1 q4_2 q4_3 q5_0 q5_1 q8_0 q8_1 q2_K q3_K q4_K q5_K q6_K q8_K "
    "iq2_xxs iq2_xs iq3_xxs iq1_s iq4_nl iq3_s iq2_s iq4_xs i8 i16 i32 i64 f64 iq1_m bf16"
)
_TYPES = _TYPE_NAMES.split()
_FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


def read_ggml(weights: Path) -> Stored:
    """The tensors, as mapped views, and the vocabulary of a ggml file. Raises CheckpointError unless it is whole."""
    walk = Walk(weights, data := map_file(weights))
    walk.take(MAGIC_BYTES)
    *hparams, ftype = walk.numbers(f"{len(HPARAMS) + 1}i")
    dims = check_dims(weights, dict(zip(HPARAMS, hparams, strict=True)))
    if not 0 <= ftype < 1000 * (_LAYOUT_VERSION + 1):
        raise UnknownFormat(f"{weights.name}: is quantised in a way that is not read (ftype {ftype})")
    n_mels, n_fft = walk.numbers("2i")
    if not (0 <= n_mels <= MAX_DIM and 0 <= n_fft <= MAX_DIM):
        raise CheckpointError(f"{weights.name}: claims mel filters of {n_mels}×{n_fft}")
    walk.take(4 * n_mels * n_fft)  # the filters follow from n_mels
    (n_tokens,) = walk.numbers("i")
    if not 0 < n_tokens <= dims.n_vocab:
        raise CheckpointError(f"{weights.name}: claims {n_tokens} tokens of a vocabulary of {dims.n_vocab}")
    tokens = [_token(walk) for _ in range(n_tokens)]
    arrays: dict[str, NDArray[Any] | Packed] = {}
    while walk.position < len(walk.data):
        name, tensor = _tensor(walk)
        if name in arrays:
            raise CheckpointError(f"{weights.name}: has tensor {name} twice")
        # Written as [n, 1]: ggml adds it to [n_frames] by broadcasting.
        if name in ("encoder.conv1.bias", "encoder.conv2.bias") and isinstance(tensor, np.ndarray):
            tensor = tensor.reshape(-1)
        arrays[name] = tensor
    return Stored(
        dims,
        arrays,
        lambda name: name,
        maps=(data,),
        make_tokenizer=lambda: tokenizer_json(weights, tokens, dims.n_vocab, dims.n_audio_ctx),
    )


def _token(walk: Walk) -> bytes:
    (length,) = walk.numbers("i")
    return walk.text(length, MAX_TOKEN_BYTES, "a token")


def _tensor(walk: Walk) -> tuple[str, NDArray[Any] | Packed]:
    """A name and its values, sizes written last dimension first."""
    path = walk.path.name
    n_dims, name_length, number = walk.numbers("3i")
    if not 1 <= n_dims <= 4 or name_length < 1:
        raise CheckpointError(f"{path}: has a damaged tensor header at byte {walk.position}")
    shape = tuple(reversed(walk.numbers(f"{n_dims}i")))
    name = walk.name(name_length)
    if not all(0 < size <= MAX_DIM for size in shape):
        raise CheckpointError(f"{path}: tensor {name} has an impossible shape {list(shape)}")
    n_values = math.prod(shape)
    kind = _TYPES[number] if 0 <= number < len(_TYPES) else f"type {number}"
    if kind in _FLOAT_BYTES:
        begin = walk.take(n_values * _FLOAT_BYTES[kind])
        return name, tensor_at(walk.path, name, walk.data, kind.upper(), shape, begin, walk.position)
    if kind not in LAYOUTS:
        error = UnknownFormat if kind in _TYPES else CheckpointError
        raise error(f"{path}: tensor {name} is of {kind}, expected {', '.join((*_FLOAT_BYTES, *LAYOUTS))}")
    layout, zero = LAYOUTS[kind]
    if shape[-1] % BLOCK:
        raise CheckpointError(
            f"{path}: tensor {name} has rows of {shape[-1]} values, which {kind} cannot divide into blocks of {BLOCK}"
        )
    begin = walk.take(n_values // BLOCK * layout.itemsize)
    return name, Blocks(np.frombuffer(walk.data, layout, n_values // BLOCK, begin), zero, shape)
