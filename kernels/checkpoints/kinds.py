"""Recognises a file by its first bytes: a supported format, or the name of another."""

import re
from collections.abc import Mapping
from pathlib import Path

from kernels.checkpoints.common import CheckpointError, UnknownFormat

START_BYTES = 512
SUFFIXES = (".safetensors", ".mpk", ".mpk.gz", ".pt", ".bin")
_TEXT = (".json", ".txt", ".md", ".py", ".jinja")  # not weights, whatever their content

# Patterns of the first bytes, compiled when tried. First the supported formats except Burn's, which has no signature; a
# safetensors file starts with a u64 and a JSON header.
_READ = {
    rb"lmgg": "ggml",
    rb"[\x01-\x20]\0\0\0.\0[A-Z]\w*Spec\0": "ctranslate2",
    rb".{4}\0{4}\{": "safetensors",
    rb"PK\x03\x04": "torch",
}
_OTHERS = {
    rb"GGUF": "a GGUF file; of whisper.cpp's models, the ggml .bin files are read",
    rb"tjgg|fmgg|algg": "an old ggml file of a language model",
    rb"\x80\x02\x8a\x0al": "a PyTorch file from before torch 1.6, which torch.load and torch.save bring up to date",
    rb"\x80[\x02-\x05][\x95}c\]]": "a Python pickle",
    rb"\x89HDF\r\n\x1a\n": "a Keras or TensorFlow HDF5 file",
    rb".{4}TFL3": "a TensorFlow Lite model",
    rb".{4}ET1\d": "an ExecuTorch program",
    rb"\x93NUMPY": "a NumPy array",
    rb"version https://git-lfs": "a Git LFS pointer, not the file that it stands for, which git lfs pull fetches",
    rb"(?i)\s*<(!doctype\s+html|html)": "an HTML page, not a model: something went wrong when it was fetched",
    rb"\s*<\?xml": "XML, not a model's weights",
    rb"\s*[\[{]\s*[\"\[{\]}]": "JSON, not a model's weights",
    rb"7z\xbc\xaf|Rar!|\xfd7zXZ|\x28\xb5\x2f\xfd|BZh": "a packed archive, to be unpacked first",
    rb"\x1f\x8b": "a gzip archive, to be unpacked first",
    rb".{257}ustar": "a tar archive, to be unpacked first",
    rb"RIFF.{4}WAVE|fLaC|ID3|OggS|.{4}ftyp": "an audio or video file",
    # Protocol buffers have no mark: the first field is the version, 1 of a saved model, then comes a name.
    rb"\x08\x01\x12": "a TensorFlow saved model",
    rb"\x08[\x02-\x20][\x12:B]": "an ONNX model",
}
_BY_SUFFIX = {
    ".onnx": "an ONNX model",
    ".gguf": "a GGUF file",
    ".h5": "a Keras or TensorFlow HDF5 file",
    ".pb": "a TensorFlow graph",
    ".tflite": "a TensorFlow Lite model",
    ".msgpack": "a Flax model",
    ".mlmodel": "a Core ML model",
    ".mlmodelc": "a Core ML model",
    ".npz": "a NumPy archive, as MLX has",
    ".nemo": "a NeMo archive",
    ".engine": "a TensorRT engine",
    ".xml": "an OpenVINO model",
}


def format_of(path: Path) -> str:
    """ggml, ctranslate2, safetensors, torch, index or burn: by the file's first bytes, else by its name.

    Raises UnknownFormat, naming the kind, for another format; CheckpointError for an unreadable file.
    """
    start = _start(path)
    if not start:
        raise CheckpointError(f"{path.name}: is empty")
    found = _match(_READ, start)
    if found is not None:
        return found
    for suffix, name in ((".index.json", "index"), (".mpk.gz", "burn")):
        if path.name.endswith(suffix):
            return name
    kind = _kind(path, start)
    if kind is not None:
        raise UnknownFormat(f"{path.name}: is {kind}")
    for suffix, name in ((".safetensors", "safetensors"), (".mpk", "burn"), (".pt", "torch")):
        if path.name.endswith(suffix):
            return name
    if path.name.endswith(".bin"):
        raise CheckpointError(f"{path.name}: does not start like a ggml, CTranslate2 or PyTorch file")
    raise UnknownFormat(f"{path.name}: unknown format (expected {', '.join(SUFFIXES)})")


def other_kind(path: Path) -> str | None:
    """The kind of a file of an unsupported format, in words ("an ONNX model"); None for others, and for text."""
    if path.suffix in _TEXT:
        return None
    start = _start(path)
    return None if _match(_READ, start) else _kind(path, start)


def _kind(path: Path, start: bytes) -> str | None:
    return _match(_OTHERS, start) or _BY_SUFFIX.get(path.suffix.lower())


def _match(patterns: Mapping[bytes, str], start: bytes) -> str | None:
    return next((meaning for pattern, meaning in patterns.items() if re.match(pattern, start, re.DOTALL)), None)


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(START_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
