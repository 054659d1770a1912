"""Small synthetic checkpoints load to the same arrays from every format; damaged and hostile ones are refused."""

import gzip
import json
import mmap
import os
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from kernels.checkpoints.common import read_text
from kernels.checkpoints.huggingface import _safetensors
from kernels.checkpoints.load import Checkpoint, CheckpointError, Dimensions, load_checkpoint, sinusoids
from kernels.checkpoints.vocabulary import BYTE_OF, tokenizer_json
from tests.support.checkpoint_files import (
    DIMS,
    TOKENIZER,
    TOKENS,
    WRITERS,
    Arrays,
    Writer,
    arrays_of,
    write_burn,
    write_ggml,
    write_huggingface,
    write_openai,
)

every_format = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


def file_of(path: Path) -> Path:
    """The file a written checkpoint's tensors lie in."""
    return path / "model.safetensors" if path.is_dir() else path


def assert_same(checkpoint: Checkpoint, arrays: Arrays) -> None:
    assert set(checkpoint.arrays) == set(arrays)
    for name, array in arrays.items():
        loaded = checkpoint.arrays[name]
        assert loaded.dtype in (np.float16, np.float32) and loaded.dtype.isnative, name
        np.testing.assert_array_equal(loaded.astype(np.float32), array.astype(np.float32), err_msg=name)


@every_format
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_format_gives_the_same_arrays(write: Writer, dtype: type, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write(tmp_path, arrays_of(dtype)))
    assert checkpoint.dims == DIMS
    assert checkpoint.is_multilingual is False
    assert checkpoint.alignment_heads == ((1, 0), (1, 1))  # the upper half of the layers
    assert_same(checkpoint, arrays_of(dtype))
    checkpoint.release_pages()
    assert_same(checkpoint, arrays_of(dtype))


def bf16(arrays: Arrays) -> Arrays:
    return {name: (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for name, array in arrays.items()}


def test_bf16_is_widened(tmp_path: Path) -> None:
    assert_same(load_checkpoint(write_openai(tmp_path, bf16(arrays_of()))), arrays_of())
    folder = write_huggingface(tmp_path, bf16(arrays_of()))
    data = file_of(folder).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = data[8 : 8 + length].replace(b'"U16"', b'"BF16"').rstrip()
    file_of(folder).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    assert_same(load_checkpoint(folder), arrays_of())


def test_shards_are_joined(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path, arrays_of())
    whole = (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    extra = folder / "model-00002-of-00002.safetensors"
    save_file({"proj_out.weight": np.zeros((2, 2), np.float16)}, extra)
    index = {"weight_map": {"a": whole.name, "proj_out.weight": extra.name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load_checkpoint(folder), arrays_of())


def test_positions_left_out_are_sinusoids(tmp_path: Path) -> None:
    arrays = arrays_of()
    del arrays["encoder.positional_embedding"]
    loaded = load_checkpoint(write_openai(tmp_path, arrays)).arrays["encoder.positional_embedding"]
    np.testing.assert_array_equal(loaded, sinusoids(6, 8))
    assert loaded[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(loaded[3, :2], np.sin([3, 3 / 10_000 ** (1 / 3)]), rtol=1e-6)


def test_generation_config_tells_heads_and_languages(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path, arrays_of())
    (folder / "generation_config.json").write_text('{"alignment_heads": [[0, 1], [1, 0]], "is_multilingual": true}')
    checkpoint = load_checkpoint(folder)
    assert checkpoint.alignment_heads == ((0, 1), (1, 0)) and checkpoint.is_multilingual
    (folder / "generation_config.json").write_text('{"alignment_heads": []}')
    assert load_checkpoint(folder).alignment_heads == ((1, 0), (1, 1))  # as if it did not say
    (folder / "generation_config.json").write_text('{"alignment_heads": [[2, 0]]}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: alignment head \[2, 0\]"):
        load_checkpoint(folder)


def test_generation_config_tells_how_many_beams(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path, arrays_of())
    for text, num_beams in (("{}", 1), ('{"num_beams": null}', 1), ('{"num_beams": 5}', 5), ('{"num_beams": 99}', 16)):
        (folder / "generation_config.json").write_text(text)
        assert load_checkpoint(folder).num_beams == num_beams
    for value in ("0", "-1", "true", '"5"', "2.0", "[5]"):
        (folder / "generation_config.json").write_text(f'{{"num_beams": {value}}}')
        with pytest.raises(CheckpointError, match=r"generation_config\.json: num_beams is .* above 0"):
            load_checkpoint(folder)
    for text, conditions in (("{}", True), ('{"condition_on_prev_tokens": false}', False)):
        (folder / "generation_config.json").write_text(text)
        assert load_checkpoint(folder).condition_on_prev_tokens is conditions
    (folder / "generation_config.json").write_text('{"condition_on_prev_tokens": 0}')
    with pytest.raises(CheckpointError, match="condition_on_prev_tokens is 0, not true or false"):
        load_checkpoint(folder)


def test_config_and_tokenizer_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = write_huggingface(tmp_path, arrays_of())
    config = (folder / "config.json").rename(tmp_path / "elsewhere" / "c.json")
    tokenizer = (folder / "tokenizer.json").rename(tmp_path / "elsewhere" / "t.json")
    checkpoint = load_checkpoint(file_of(folder), config=config, tokenizer=tokenizer)
    assert checkpoint.tokenizer_json == TOKENIZER
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read"):
        load_checkpoint(folder, config=config)


def test_a_folder_may_hold_one_file_of_any_format(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors, and 0 files"):
        load_checkpoint(tmp_path)
    write_ggml(tmp_path, arrays_of())
    assert_same(load_checkpoint(tmp_path), arrays_of())
    write_openai(tmp_path, arrays_of())
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors, and 2 files"):
        load_checkpoint(tmp_path)


def test_ggml_vocabulary_becomes_a_working_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(load_checkpoint(write_ggml(tmp_path, arrays_of())).tokenizer_json)
    assert tokenizer.get_vocab_size() == DIMS.n_vocab
    encoded = tokenizer.encode("the hand in é", add_special_tokens=False).ids
    assert [TOKENS[token] for token in encoded] == [b"the", b" ", b"h", b"and", b" ", b"in", b" ", b"\xc3", b"\xa9"]
    assert tokenizer.decode(encoded) == "the hand in é"
    assert tokenizer.token_to_id("<|endoftext|>") == len(TOKENS)
    assert tokenizer.token_to_id("<|zh|>") == len(TOKENS) + 3
    assert tokenizer.token_to_id("<|0.12|>") == DIMS.n_vocab - 1


def test_real_vocabulary_rebuilds_the_real_merges(shared: Path) -> None:
    ours = json.loads((shared / "models/tiny_en/tokenizer.json").read_text())
    vocab = {token: rank for token, rank in ours["model"]["vocab"].items() if token != "<|endoftext|>"}
    in_order = sorted(vocab, key=lambda token: vocab[token])
    tokens = [bytes(BYTE_OF[character] for character in token) for token in in_order]
    rebuilt = json.loads(tokenizer_json(Path("x.bin"), tokens, 51864, 1500))
    assert rebuilt["model"]["vocab"] == vocab
    assert [" ".join(pair) for pair in rebuilt["model"]["merges"]] == ours["model"]["merges"]


@every_format
def test_a_missing_tensor_is_named(write: Writer, tmp_path: Path) -> None:
    arrays = arrays_of()
    del arrays["decoder.blocks.1.cross_attn.query.bias"]
    path = write(tmp_path, arrays)
    missing = (
        r"tensor \S*decoder.*1.*(cross_attn.query|encoder_attn.q_proj|attention/linear_0)[./]bias \[8\] is missing"
    )
    with pytest.raises(CheckpointError, match=missing) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(file_of(path).name)


@every_format
def test_a_wrong_shape_is_named(write: Writer, tmp_path: Path) -> None:
    arrays = arrays_of()
    arrays["encoder.conv2.weight"] = arrays["encoder.conv2.weight"][:, :, :2].copy()
    with pytest.raises(CheckpointError, match=r"encoder.conv2.weight has shape \[8, 8, 2\], expected \[8, 8, 3\]"):
        load_checkpoint(write(tmp_path, arrays))


@every_format
def test_an_unknown_tensor_is_named(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, arrays_of() | {"encoder.conv3.weight": np.zeros((2, 2), np.float16)})
    with pytest.raises(CheckpointError, match=r"tensor \S*encoder[./]conv3[./]weight does not belong"):
        load_checkpoint(path)


def test_a_wrong_dtype_is_named(tmp_path: Path) -> None:
    arrays = arrays_of() | {"encoder.conv1.bias": np.zeros(8, np.int16)}
    with pytest.raises(
        CheckpointError, match=r"model\.encoder\.conv1\.bias has dtype I16, expected F16, F32, BF16 or I8"
    ):
        load_checkpoint(write_huggingface(tmp_path, arrays))


@every_format
def test_every_truncation_is_refused(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, arrays_of())
    data = file_of(path).read_bytes()
    cuts = {*range(0, 64, 5), *range(64, len(data), max(1, len(data) // 60)), len(data) - 1}
    for cut in cuts:
        file_of(path).write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@every_format
def test_damage_never_raises_anything_else(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, arrays_of())
    data = file_of(path).read_bytes()
    chance = random.Random(0)
    for _ in range(80):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 1, 4])):
            # Headers are at the front, or, of a zip, at the back: damage them as often as the long middle.
            reach = chance.choice([len(data), min(len(data), 400)])
            at = chance.choice([1, -1]) * chance.randrange(1, reach)
            damaged[at] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        file_of(path).write_bytes(damaged)
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize("name", ["model.safetensors", "x.mpk", "x.mpk.gz", "x.pt", "x.bin", "x.exe"])
def test_a_file_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    write_huggingface(tmp_path, arrays_of())
    write_burn(tmp_path, arrays_of()).rename(tmp_path / "other")
    (tmp_path / "small.cfg").rename(tmp_path / "x.cfg")
    for content in (b"", b"\x00", b"PK\x03\x04", b"RIFF" * 100, b"\xff" * 1000, b"{" * 100_000, b"\x91" * 100_000):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pt")


class _Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    for function, arguments in ((os.system, (f"touch {tmp_path}/ran",)), (eval, ("1",)), (getattr, ("", "join"))):
        with pytest.raises(CheckpointError, match="which no checkpoint needs"):
            load_checkpoint(write_openai(tmp_path, arrays_of(), extra=_Evil(function, *arguments)))
    assert not (tmp_path / "ran").exists()


# A tuple of itself, twice, sixty times over: a few hundred bytes that written out, or hashed, would take for ever.
DOUBLED = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cos\nsystem\n\x8c\x02ls\x85R.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo index that would make an unpickler reserve 32 GB
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # text of 2⁶³ bytes
        b"\x80\x04\x8b\xff\xff\xff\x7f1.",  # a number of two gigabytes
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02]" + b"\x85" * 100_000 + b".",
        b".",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"",
        b"\x80\x02\x8c\x07storage(" + DOUBLED + b"\x8c\x010\x8c\x03cpuK\x01tQ.",
        b"\x80\x02" + DOUBLED + b"\x8c\x01x\x93.",
        b"\x80\x02}(\x8c\x04dims}\x8c\x06n_mels" + DOUBLED + b"s\x8c\x10model_state_dict}u.",
        b"\x80\x02ccollections\nOrderedDict\n(" + DOUBLED + b"K\x01\x86\x85\x85tR.",
    ],
    ids=[
        *("system", "memo", "text", "number", "marks", "nesting", "stop", "arguments", "empty"),
        *("doubled storage", "doubled name", "doubled size", "doubled key"),
    ],
)
def test_hostile_pickles_are_refused(pickled: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load_checkpoint(tmp_path / "x.pt")


def test_bombs_are_refused_unopened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is compressed or damaged"):
        load_checkpoint(write_openai(tmp_path, arrays_of(), zipped=True))
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(20 << 20))
    with pytest.raises(CheckpointError, match="too large"):
        load_checkpoint(tmp_path / "bomb.pt")
    path = write_burn(tmp_path, arrays_of(), zipped=True)
    path.write_bytes(gzip.compress(b"\xc6\xff\xff\xff\xff" + bytes(80 << 20), 1))
    with pytest.raises(CheckpointError, match="unpacks to over"):
        load_checkpoint(path)
    config = tmp_path / "small.cfg"
    claims = json.loads(config.read_text())
    claims["text_decoder_config"]["n_vocab"] = 1 << 20  # as if the model were large enough for all of it
    config.write_text(json.dumps(claims))
    with pytest.raises(CheckpointError, match="unpacks to over"):
        load_checkpoint(path)


def test_absurd_sizes_are_refused(tmp_path: Path) -> None:
    path = write_ggml(tmp_path, arrays_of())
    data = path.read_bytes()
    for at in range(4, 48, 4):
        for value in (-1, 0, 2**31 - 1):
            path.write_bytes(data[:at] + struct.pack("<i", value) + data[at + 4 :])
            if (at, value) == (44, 0):  # ftype 0, f32, is one; each tensor says its own
                continue
            with pytest.raises(CheckpointError):
                load_checkpoint(path)
    far = np.lib.stride_tricks.as_strided(np.zeros(4, np.float16), (1, 4), (2**62, 2))
    with pytest.raises(CheckpointError, match="impossible shape or place"):
        load_checkpoint(write_openai(tmp_path, arrays_of() | {"far": far}))
    folder = write_huggingface(tmp_path, arrays_of())
    huge = b'{"a":{"dtype":"F16","shape":[4294967296,4294967296],"data_offsets":[0,2]}}'
    none = b'{"a":{"dtype":"F16","shape":[0,1180591620717411303424],"data_offsets":[0,0]}}'
    for header in (huge, none, b'{"a":7}', b"[]", b'{"a":'):
        file_of(folder).write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_checkpoint(folder)
    for key, value in (
        ("vocab_size", 2**40),
        ("max_source_positions", 2**17),
        ("d_model", 7),
        ("encoder_layers", True),
        ("decoder_attention_heads", 3),
    ):
        folder = write_huggingface(tmp_path, arrays_of())
        config = json.loads((folder / "config.json").read_text()) | {key: value}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_checkpoint(folder)


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"a": entry, "b": {**entry, "data_offsets": [12, 28]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(28))
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        pytest.raises(CheckpointError, match=f"overlap at byte {8 + len(header) + 12}"),
    ):
        _safetensors(path, data)


def test_a_text_file_is_a_regular_one(tmp_path: Path) -> None:
    endless, pipe = tmp_path / "tokenizer.json", tmp_path / "config.json"
    endless.symlink_to("/dev/zero")
    os.mkfifo(pipe)
    for path in (endless, pipe, tmp_path):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            read_text(path)


def test_tiny_en_loads(shared: Path) -> None:
    checkpoint = load_checkpoint(shared / "models/tiny_en")
    assert checkpoint.dims == Dimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
    assert sum(array.size for array in checkpoint.arrays.values()) == 37_760_256
    assert checkpoint.alignment_heads[0] == (1, 0) and not checkpoint.is_multilingual
