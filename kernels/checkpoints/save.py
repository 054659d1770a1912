"""A checkpoint of any format → a Hugging Face folder, its weights unchanged, in f16, or quantised to int8."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.huggingface import CONFIG_NAMES, SCALE, huggingface_name
from kernels.checkpoints.load import Checkpoint
from kernels.checkpoints.quantised import GROUP_SIZE, quantise, quantise_coarsely

QUANTISED = {"int8": quantise, "int8-coarse": quantise_coarsely}
DTYPES = ("f32", "f16", *QUANTISED)
_CODES = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32", np.dtype(np.int8): "I8"}


def save_checkpoint(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Write config.json, generation_config.json, model.safetensors and tokenizer.json into a new or empty folder.

    `dtype` is one of DTYPES. With those of QUANTISED the matrices of the linear maps and the token embedding become
    int8 (see kernels/checkpoints/quantised.py), the rest f16. Raises ValueError for another dtype or a folder
    with files in it, OSError when it cannot be written, OverflowError for a weight too large for f16.
    """
    if dtype not in DTYPES:
        raise ValueError(f"{dtype} is not one of {', '.join(DTYPES)}")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    tensors: dict[str, NDArray[Any]] = {}
    for name, array in checkpoint.arrays.items():
        theirs = huggingface_name(name)
        if dtype in QUANTISED and array.ndim == 2 and name.endswith(".weight"):
            quantised = QUANTISED[dtype](array)
            tensors[theirs], tensors[theirs + SCALE] = quantised.values, quantised.scales
        else:
            tensors[theirs] = array.astype(np.float32 if dtype == "f32" else np.float16)
            if not np.isfinite(tensors[theirs]).all() and np.isfinite(array).all():
                raise OverflowError(f"{name} has a weight too large for {dtype}")
    _write_json(folder / "config.json", _config(checkpoint, dtype))
    generation = {
        "alignment_heads": [list(pair) for pair in checkpoint.alignment_heads],
        "is_multilingual": checkpoint.is_multilingual,
        "num_beams": checkpoint.num_beams,
        "condition_on_prev_tokens": checkpoint.condition_on_prev_tokens,
    }
    _write_json(folder / "generation_config.json", generation)
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    _write_safetensors(folder / "model.safetensors", tensors)


def _config(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """Transformers' config.json for a Whisper, with compressed-tensors' description of the int8 weights."""
    dims = checkpoint.dims
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "scale_embedding": False,
        "torch_dtype": "float32" if dtype == "f32" else "float16",
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        **{theirs: getattr(dims, ours) for ours, theirs in CONFIG_NAMES.items()},
    }
    if dtype in QUANTISED:
        scales = {"strategy": "group", "group_size": GROUP_SIZE} if dtype == "int8" else {"strategy": "channel"}
        weights = {"num_bits": 8, "type": "int", "symmetric": True, **scales}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"group_0": {"targets": ["Linear", "Embedding"], "weights": weights}},
        }
    return config


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _write_safetensors(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """The format's u64 length of a JSON header, the header, then every tensor's bytes, little endian, rows first."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in tensors.items():
        end = position + array.nbytes
        header[name] = {"dtype": _CODES[array.dtype], "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
