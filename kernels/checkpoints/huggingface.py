"""Hugging Face checkpoints: config.json beside model.safetensors, whole or in shards.

Tensors are views of the mapped file. The safetensors library cannot give those: it copies each tensor for NumPy.
"""

import mmap
import re
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.common import (
    FLOATS,
    CheckpointError,
    Stored,
    UnknownFormat,
    brief,
    check_dims,
    map_file,
    parse_json,
    read_text,
    tensor_at,
)
from kernels.checkpoints.quantised import Packed, Quantised

MAX_HEADER_BYTES = 100 << 20  # the safetensors library's own limit
DTYPES = {**FLOATS, "I8": ("<i1", 1)}
SCALE = "_scale"  # suffix that compressed-tensors adds to a quantised weight's name for its scales

CONFIG_NAMES = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
_RENAMES = (  # OpenAI's part of a tensor name → Hugging Face's, in this order
    (r"\.blocks\.", ".layers."),
    (r"\.token_embedding\.weight$", ".embed_tokens.weight"),
    (r"\.positional_embedding$", ".embed_positions.weight"),
    (r"^(encoder)\.ln_post\.|^(decoder)\.ln\.", r"\1\2.layer_norm."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"\.(query|key|value|out)\.", r".\1_proj."),
    (r"\.query_proj\.", ".q_proj."),
    (r"\.key_proj\.", ".k_proj."),
    (r"\.value_proj\.", ".v_proj."),
)


def huggingface_name(name: str) -> str:
    """OpenAI's tensor name as Hugging Face writes it: decoder.blocks.0.mlp.2.bias → model.decoder.layers.0.fc2.bias."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return f"model.{name}"


def described(config: Path, tensors: Mapping[str, NDArray[Any] | Packed], maps: tuple[mmap.mmap, ...]) -> Stored:
    """Tensors under Hugging Face's names, and the description in config.json. Raises CheckpointError."""
    settings = parse_json(config, read_text(config))
    kind = settings.get("model_type", "whisper")
    if kind != "whisper":
        raise UnknownFormat(f"{config.name}: describes a model of another kind ({brief(kind)}), not a Whisper")
    if "n_mels" in settings and "num_mel_bins" not in settings:
        raise UnknownFormat(f"{config.name}: describes a model in MLX's layout")
    dims = check_dims(config, settings, CONFIG_NAMES)
    if settings.get("activation_function", "gelu") != "gelu" or settings.get("scale_embedding", False):
        raise CheckpointError(
            f"{config.name}: only Whisper's own gelu activation and unscaled embeddings are supported"
        )
    # Transformers ties the output to the token embedding, and some exporters write both.
    return Stored(dims, tensors, huggingface_name, frozenset({"proj_out.weight"}), maps)


def read_huggingface(weights: Path, config: Path) -> Stored:
    """The tensors of a .safetensors file, or of the shards listed in an .index.json, as mapped views.

    Raises CheckpointError unless the file is whole and consistent.
    """
    files = [weights]
    if weights.name.endswith(".index.json"):
        listed = parse_json(weights, read_text(weights)).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise CheckpointError(f"{weights.name}: has no weight_map of file names")
        # Only names next to the index: a foreign index must not make us open other files.
        files = [weights.parent / Path(name).name for name in sorted(set(listed.values()))]
    arrays: dict[str, NDArray[Any]] = {}
    maps: list[mmap.mmap] = []
    for file in files:
        if file.suffix == ".bin":
            from kernels.checkpoints.openai import open_torch

            torch = open_torch(file)
            data, found = torch.data, torch.tensors(torch.content)
        else:
            data = map_file(file)
            found = _safetensors(file, data)
        maps.append(data)
        arrays.update(found)
    return described(config, _paired(weights, arrays), tuple(maps))


def _safetensors(path: Path, data: mmap.mmap) -> dict[str, NDArray[Any]]:
    """Views of every tensor of one file, which is a u64 header length, a JSON header, then the data."""
    if len(data) < 8:
        raise CheckpointError(f"{path.name}: {len(data)} bytes is too short for a safetensors file")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise CheckpointError(f"{path.name}: a header of {length} bytes in a file of {len(data)}: truncated or damaged")
    start = 8 + length
    arrays: dict[str, NDArray[Any]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in parse_json(path, data[8:start]).items():
        if name == "__metadata__":
            continue
        fields = entry if isinstance(entry, dict) else {}
        dtype, shape, offsets = fields.get("dtype"), _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
        if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
            raise CheckpointError(f"{path.name}: tensor {name:.80} has a malformed header entry")
        arrays[name] = tensor_at(path, name, data, dtype, shape, start + offsets[0], start + offsets[1], DTYPES)
        spans.append((offsets[0], offsets[1]))
    for before, after in pairwise(sorted(spans)):
        if after[0] < before[1]:  # one small file could be expanded into any number of tensors
            raise CheckpointError(f"{path.name}: tensors overlap at byte {start + after[0]}")
    return arrays


def _paired(path: Path, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any] | Packed]:
    """The tensors, with each quantised weight joined to its scales. Raises CheckpointError."""
    paired: dict[str, NDArray[Any] | Packed] = {}
    for name, array in arrays.items():
        quantised = arrays.get(name.removesuffix(SCALE))
        if array.dtype == np.int8:
            paired[name] = _quantised(path, name, array, arrays.get(name + SCALE))
        elif quantised is None or quantised.dtype != np.int8:
            paired[name] = array
    return paired


def _quantised(path: Path, name: str, values: NDArray[np.int8], scales: NDArray[Any] | None) -> Quantised:
    """A quantised weight. Raises CheckpointError unless its scales exist and fit."""
    if scales is None:
        raise CheckpointError(f"{path.name}: tensor {name:.120} has dtype I8 and no scales named {SCALE} beside it")
    fits = values.ndim == scales.ndim == 2 and len(values) == len(scales) and values.shape[1] % scales.shape[1] == 0
    if not fits or scales.dtype == np.int8:
        raise CheckpointError(
            f"{path.name}: tensor {name:.120} of shape {list(values.shape)} cannot be scaled by"
            f" {scales.dtype} {list(scales.shape)}, expected floats [n_out, n_groups]"
        )
    return Quantised(values, scales)


def _sizes(value: object) -> tuple[int, ...] | None:
    """A JSON list of whole numbers ≥ 0, or None for anything else."""
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        return None
    return tuple(value)
