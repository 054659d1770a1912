"""Converts a Hugging Face Whisper for the other engines; the benchmark runs it in their virtual environment.

usage: python -m bench.convert MODEL OUTPUT
"""

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kernels.checkpoints.ggml import HPARAMS
from kernels.checkpoints.load import load_checkpoint
from kernels.checkpoints.vocabulary import BYTE_OF

GGML = 0x67676D6C


def write_huggingface(model: Path, folder: Path) -> None:
    """The folder with the files that transformers needs next to the weights."""
    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copyfile(path, folder / path.name)
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": json.loads((model / "config.json").read_text())["num_mel_bins"],
        "sampling_rate": 16_000,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
        "padding_value": 0.0,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(features))


def _ctranslate2(huggingface: Path, folder: Path) -> None:
    """f16 as stored: CTranslate2 widens or quantises it when it loads."""
    from ctranslate2.converters import TransformersConverter

    copied = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(huggingface), copy_files=copied, load_as_float16=True).convert(str(folder))


def _blocks(array: Any) -> Any:
    """Blocks of 32 neighbours of a row, (n_blocks, 32) f32."""
    return np.ascontiguousarray(array, np.float32).reshape(-1, 32)


def _steps(blocks: Any, scales: Any) -> Any:
    """Each value in steps of its block's scale, rounded; 0 for a scale of 0."""
    return np.rint(blocks / np.where(scales == 0, 1, scales))


def quantise_q8_0(array: Any) -> bytes:
    """ggml's q8_0: per block, an f16 scale and 32 signed bytes."""
    blocks = _blocks(array)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127
    return np.concatenate(
        [scales.astype("<f2").view(np.uint8), _steps(blocks, scales).astype(np.int8).view(np.uint8)], axis=1
    ).tobytes()


def quantise_q5_1(array: Any) -> bytes:
    """ggml's q5_1: per block, an f16 scale and minimum, the fifth bits of 32 values, then their low halves."""
    blocks = _blocks(array)
    least = blocks.min(axis=1, keepdims=True)
    scales = (blocks.max(axis=1, keepdims=True) - least) / 31
    values = np.clip(_steps(blocks - least, scales), 0, 31).astype(np.uint8)
    high = np.packbits(values >> 4, axis=1, bitorder="little")
    low = (values[:, :16] & 15) | (values[:, 16:] & 15) << 4
    heads = [part.astype("<f2").view(np.uint8) for part in (scales, least)]
    return np.concatenate([*heads, high, low], axis=1).tobytes()


# Name → the header's ftype, including whisper.cpp's version of quantised formats; a tensor's type; the writer.
QUANTISED = {"q8_0": (2007, 8, quantise_q8_0), "q5_1": (2009, 7, quantise_q5_1)}


def write_ggml(model: Path, file: BinaryIO, quantised: str = "") -> None:
    """f16 weights with f32 biases, norms and positions, in the layout of whisper.cpp's convert-h5-to-ggml.py.

    `quantised`: the type of the matrices instead, as whisper.cpp's quantize writes it.
    """
    from service.audio.log_mel import mel_filters

    ftype, matrix_type, quantise = QUANTISED.get(quantised, (1, 1, None))
    checkpoint = load_checkpoint(model)
    file.write(struct.pack("<12i", GGML, *(getattr(checkpoint.dims, name) for name in HPARAMS), ftype))
    filters = mel_filters(checkpoint.dims.n_mels)
    file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
    tokenizer = json.loads(checkpoint.tokenizer_json)
    special = {token["id"] for token in tokenizer["added_tokens"]}
    ranked = sorted((rank, text) for text, rank in tokenizer["model"]["vocab"].items() if rank not in special)
    words = [bytes(BYTE_OF[character] for character in text) for _, text in ranked]
    file.write(struct.pack("<i", len(words)) + b"".join(struct.pack("<i", len(word)) + word for word in words))
    for name, array in checkpoint.arrays.items():
        if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
            array = array[:, None]
        is_half = array.ndim > 1 and not name.endswith(("bias", "positional_embedding"))
        is_quantised = is_half and array.ndim == 2 and quantise is not None
        file.write(struct.pack("<3i", array.ndim, len(name), matrix_type if is_quantised else int(is_half)))
        file.write(struct.pack(f"<{array.ndim}i", *reversed(array.shape)) + name.encode())
        if is_quantised and quantise is not None:
            file.write(quantise(array))
        else:
            file.write(np.ascontiguousarray(array, np.float16 if is_half else np.float32).tobytes())


def _ggml(quantised: str) -> Callable[[Path, Path], None]:
    def write(huggingface: Path, path: Path) -> None:
        with path.open("wb") as file:
            write_ggml(huggingface, file, quantised)

    return write


def main() -> None:
    """Make the missing formats; skip those whose library isn't installed."""
    model, output = Path(sys.argv[1]), Path(sys.argv[2])
    if not (output / "huggingface").exists():
        write_huggingface(model, output / "huggingface")
    ggml = {f"ggml-model{'-' * bool(name)}{name}.bin": _ggml(name) for name in ("", *QUANTISED)}
    for name, write in {"ctranslate2": _ctranslate2, **ggml}.items():
        if not (output / name).exists():
            part = output / f"{name}.part"
            try:
                write(output / "huggingface", part)
                part.rename(output / name)
            except ImportError as error:
                sys.stderr.write(f"no {name}: {error}\n")


if __name__ == "__main__":
    main()
