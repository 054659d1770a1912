"""Files that are not read are named as what they are, and only damage is answered with "fetch its files again"."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.checkpoints.common import NoTokenizer, UnknownFormat
from kernels.checkpoints.load import CheckpointError, load_checkpoint
from service.errors import ModelError
from service.models.loaded import read_checkpoint
from service.models.names import ModelSpec
from tests.support.checkpoint_files import (
    DIMS,
    TOKENIZER,
    arrays_of,
    write_burn,
    write_ctranslate2,
    write_huggingface,
    write_openai,
    write_torch,
)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.bin"))
    return buffer.getvalue()


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"\x80\x02}.")
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 75537502\n"
OTHERS = {
    "gguf": (b"GGUF\3\0\0\0" + bytes(64), "is a GGUF file"),
    "language model": (b"tjgg\1\0\0\0" + bytes(64), "is an old ggml file of a language model"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xff\x01", "is an ONNX model"),
    "optimum onnx": (b"\x08\x07\x12\x12onnx.quantize\x1a\x050.1.0", "is an ONNX model"),
    "saved model": (b"\x08\x01\x12\xf4\x05\n", "is a TensorFlow saved model"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "is a Keras or TensorFlow HDF5 file"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(64), "is a TensorFlow Lite model"),
    "numpy": (b"\x93NUMPY\1\0" + bytes(64), "is a NumPy array"),
    "mlx": (archive("encoder.npy", "decoder.npy"), "has no data.pkl: it is a zip archive of NumPy arrays"),
    "zip": (archive("readme.txt"), "has no data.pkl: it is a zip archive of other things"),
    "torchscript": (archive("m/data.pkl", "m/constants.pkl", "m/code/a.py"), "is a TorchScript program"),
    "old torch": (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        "is a PyTorch file from before torch 1.6",
    ),
    "pickle": (pickle.dumps({"a": 1}, 4), "is a Python pickle"),
    "lfs": (LFS, "is a Git LFS pointer, not the file that it stands for, which git lfs pull fetches"),
    "html": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "is an HTML page, not a model"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is XML, not a model's weights"),
    "json": (b'{"error": "Repository not found"}', "is JSON, not a model's weights"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "is a gzip archive, to be unpacked first"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "is a packed archive, to be unpacked first"),
    "tar": (tar(), "is a tar archive, to be unpacked first"),
    "audio": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(20), "is an audio or video file"),
}


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path.name}: ")
    return error.value


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors", "model.pt", "model.mpk"])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_is_named(kind: str, name: str, tmp_path: Path) -> None:
    content, message = OTHERS[kind]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert message in str(error) and isinstance(error, UnknownFormat)
    with pytest.raises(ModelError, match=r"cannot be loaded: .*\. Name another with --model") as told:
        read_checkpoint(ModelSpec("m", tmp_path / name))
    assert "etch its files again" not in str(told.value)


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors", "model.pt", "small.mpk", "small.mpk.gz"])
@pytest.mark.parametrize("content", [b"", b"\0" * 3000, b"\xff" * 3000])
def test_damage_is_answered_with_fetching_again(content: bytes, name: str, tmp_path: Path) -> None:
    write_huggingface(tmp_path, arrays_of())
    write_burn(tmp_path, arrays_of())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: {'is empty' if not content else ''}"):
        load_checkpoint(tmp_path / name)
    with pytest.raises(ModelError, match=r"Fetch its files again, or name another with --model"):
        read_checkpoint(ModelSpec("m", tmp_path / name))


@pytest.mark.parametrize("suffix", [".onnx", ".gguf", ".h5", ".pb", ".tflite", ".msgpack", ".npz"])
def test_a_folder_of_another_format_is_named(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    (tmp_path / f"encoder{suffix}").write_bytes(b"\n\x05abcde")
    with pytest.raises(UnknownFormat, match=rf"has no model\.safetensors, .*; its encoder\{suffix} is an? "):
        load_checkpoint(tmp_path)


def test_a_faster_whisper_folder_without_its_weights_is_incomplete(tmp_path: Path) -> None:
    write_ctranslate2(tmp_path, arrays_of()).unlink()
    (tmp_path / "vocabulary.txt").write_text("a\n")
    with pytest.raises(CheckpointError, match=r"the model\.bin of a CTranslate2 model is missing") as error:
        load_checkpoint(tmp_path)
    assert error.value.may_be_damage


def test_model_bin_is_preferred_to_training_files(tmp_path: Path) -> None:
    write_ctranslate2(tmp_path, arrays_of())
    (tmp_path / "training_args.bin").write_bytes(archive("a/data.pkl"))
    assert load_checkpoint(tmp_path).dims == DIMS


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    for write, name in ((write_ctranslate2, "whisper.pt"), (write_openai, "whisper.bin")):
        path = write(tmp_path, arrays_of())
        assert load_checkpoint(path.rename(tmp_path / name)).dims == DIMS


def test_another_models_tensors_are_named(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path, arrays_of())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(UnknownFormat, match=r"config\.json: describes a model of another kind \('bert'\)"):
        load_checkpoint(folder)
    (folder / "config.json").write_text('{"model_type": "whisper", "n_mels": 80, "n_audio_ctx": 1500}')
    with pytest.raises(UnknownFormat, match=r"config\.json: describes a model in MLX's layout"):
        load_checkpoint(folder)
    path = write_openai(tmp_path, {"embeddings.word": np.zeros((2, 2), np.float32)}, content=lambda state: state)
    with pytest.raises(UnknownFormat, match=r"small\.pt: holds neither OpenAI's dims and model_state_dict nor"):
        load_checkpoint(path)


def test_a_tokenizer_is_asked_for_where_there_is_none(tmp_path: Path) -> None:
    path = write_openai(tmp_path, arrays_of())
    asked: list[Any] = []

    def tokenizer_for(dims: Any) -> str | None:
        asked.append(dims)
        return "theirs" if len(asked) == 1 else None

    assert load_checkpoint(path, tokenizer_for=tokenizer_for).tokenizer_json == TOKENIZER and not asked
    (tmp_path / "tokenizer.json").unlink()
    assert load_checkpoint(path, tokenizer_for=tokenizer_for).tokenizer_json == "theirs" and asked == [DIMS]
    missing = r"tokenizer\.json: cannot be read .* small\.pt has no vocabulary inside: put there the .* English-only"
    for ask in (tokenizer_for, None):
        with pytest.raises(NoTokenizer, match=missing) as error:
            load_checkpoint(path, tokenizer_for=ask)
        assert not error.value.may_be_damage
    with pytest.raises(ModelError, match=r"of 283 tokens\. Any model of that kind"):
        read_checkpoint(ModelSpec("m", path))


def test_torch_shards_are_joined(tmp_path: Path) -> None:
    """As Transformers wrote models of over 10 GB: pytorch_model-00001-of-00002.bin and an index."""
    whole = write_torch(tmp_path, arrays_of()).rename(tmp_path / "pytorch_model-00001-of-00002.bin")
    index = {"weight_map": {"a": whole.name}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded = load_checkpoint(tmp_path)
    assert loaded.dims == DIMS
    for name, array in arrays_of().items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    whole.write_bytes(struct.pack("<I", 7) * 40)
    with pytest.raises(CheckpointError, match=r"pytorch_model-00001-of-00002\.bin: is not a whole zip archive"):
        load_checkpoint(tmp_path)
