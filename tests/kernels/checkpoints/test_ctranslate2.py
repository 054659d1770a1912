"""CTranslate2's model.bin: every storage that its converters write, mapped, and what is refused by name."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kernels.checkpoints.common import UnknownFormat
from kernels.checkpoints.ctranslate2 import ctranslate2_name
from kernels.checkpoints.load import CheckpointError, load_checkpoint
from kernels.checkpoints.vocabulary import BYTE_NAMES
from tests.support.checkpoint_files import (
    DIMS,
    TOKENIZER,
    TOKENS,
    Arrays,
    arrays_of,
    ctranslate2_bytes,
    ctranslate2_variables,
    write_ctranslate2,
)

EMBEDDINGS = "decoder/embeddings/weight"
MATRICES = ("conv1/weight", "conv2/weight", "linear_0/weight", "linear_1/weight", "linear_2/weight", EMBEDDINGS)


def quantised(variables: Arrays, dtype: type) -> Arrays:
    """As the converter does: int8 with a scale a row, int16 with one for the whole."""
    stored: Arrays = {}
    for name, array in variables.items():
        if not name.endswith(MATRICES):
            stored[name] = array
            continue
        weights = array.astype(np.float32)
        rows = weights.reshape(len(weights), -1)
        scale = 127 / np.abs(rows).max(axis=1) if dtype is np.int8 else np.array(1024 / np.abs(rows).max())
        values = np.rint(rows * (scale[:, None] if dtype is np.int8 else scale))
        stored[name] = values.astype(dtype).reshape(weights.shape)
        stored[f"{name}_scale"] = scale.astype(np.float32)
    return stored


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small f16 model.bin with config.json and tokenizer.json beside it."""
    return write_ctranslate2(tmp_path, arrays_of())


def test_a_folder_is_recognised_and_f16_is_not_copied(model: Path) -> None:
    checkpoint = load_checkpoint(model.parent)
    (mapped,) = checkpoint.maps
    everything = np.frombuffer(mapped, np.uint8)
    for name, array in checkpoint.arrays.items():
        assert array.dtype == np.float16 and np.shares_memory(array, everything), name
        assert not array.flags.writeable
    assert checkpoint.alignment_heads == ((1, 0), (1, 1)) and checkpoint.tokenizer_json == TOKENIZER


@pytest.mark.parametrize("floats", [np.float16, np.float32, "bf16"])
@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_every_quantised_storage_is_near(floats: Any, dtype: type, model: Path) -> None:
    variables = quantised(ctranslate2_variables(arrays_of(np.float32)), dtype)
    for name, array in variables.items():
        if array.dtype == np.float32 and not name.endswith("_scale"):
            variables[name] = (
                (array.view(np.uint32) >> 16).astype(np.uint16) if floats == "bf16" else array.astype(floats)
            )
    model.write_bytes(ctranslate2_bytes(variables))
    loaded = load_checkpoint(model).arrays
    steps = 127 if dtype is np.int8 else 1024
    for name, array in arrays_of(np.float32).items():
        is_matrix = ctranslate2_name(name).split(" ")[0].endswith(MATRICES)
        # Half a step of the largest weight, which for joined maps and int16 may lie in another row.
        near = 0.51 * 2 / steps if is_matrix else 0
        np.testing.assert_allclose(loaded[name], array, rtol=0, atol=near, err_msg=name)


def test_bf16_is_exact_and_an_alias_is_what_it_names(model: Path) -> None:
    arrays = arrays_of(np.float32)
    arrays["encoder.blocks.0.attn_ln.bias"] = arrays["encoder.ln_post.bias"]
    variables = ctranslate2_variables(arrays)
    variables = {
        name: (array.view(np.uint32) >> 16).astype(np.uint16) if array.dtype == np.float32 else array
        for name, array in variables.items()
    }
    del variables["encoder/layer_norm/beta"]
    aliases = (
        ("decoder/projection/weight", EMBEDDINGS),
        ("encoder/layer_norm/beta", "encoder/layer_0/self_attention/layer_norm/beta"),
    )
    model.write_bytes(ctranslate2_bytes(variables, aliases))
    loaded = load_checkpoint(model).arrays
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)


def test_a_bias_of_the_keys_is_left_out(model: Path) -> None:
    """It cannot change what a softmax over the keys gives."""
    variables = ctranslate2_variables(arrays_of())
    variables["decoder/layer_0/self_attention/linear_0/bias"][8:16] = 3
    model.write_bytes(ctranslate2_bytes(variables))
    assert "decoder.blocks.0.attn.key.bias" not in load_checkpoint(model).arrays


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["vocabulary.txt", "vocabulary.json"])
def test_a_vocabulary_becomes_a_working_tokenizer(name: str, ending: str, model: Path) -> None:
    (model.parent / "tokenizer.json").unlink()
    tokens = ["".join(BYTE_NAMES[byte] for byte in token) for token in TOKENS]
    tokens += [f"<|{index}|>" for index in range(DIMS.n_vocab - len(tokens))]
    text = (
        json.dumps(tokens, ensure_ascii=False) if name.endswith("json") else "".join(token + ending for token in tokens)
    )
    (model.parent / name).write_bytes(text.encode())
    tokenizer = Tokenizer.from_str(load_checkpoint(model).tokenizer_json)
    encoded = tokenizer.encode("the hand in é", add_special_tokens=False).ids
    assert [TOKENS[token] for token in encoded] == [b"the", b" ", b"h", b"and", b" ", b"in", b" ", b"\xc3", b"\xa9"]
    assert tokenizer.token_to_id("<|endoftext|>") == len(TOKENS)
    for damaged, message in (
        (json.dumps(tokens[1:]) if name.endswith("json") else text[len(ending) + 1 :], "has 282 tokens, expected 283"),
        (text.replace(tokens[7], "☃"), "has the character '☃', which stands for no byte"),
        (text.replace(tokens[7], "a" * 300), "has a token of 300 characters"),
        ('{"a": 1}' if name.endswith("json") else "", "is not a list of tokens|has 1 tokens"),
    ):
        (model.parent / name).write_bytes(damaged.encode())
        with pytest.raises(CheckpointError, match=f"{name}: .*({message})"):
            load_checkpoint(model)


def test_the_real_vocabulary_gives_the_real_tokenizer(model: Path, shared: Path) -> None:
    """Of tiny.en, written as the converter does: its own tokens, then the special ones by name."""
    real = json.loads((shared / "models/tiny_en/tokenizer.json").read_text())
    tokens = sorted(real["model"]["vocab"], key=lambda token: real["model"]["vocab"][token])
    variables = ctranslate2_variables(arrays_of())
    added = {token["id"]: token["content"] for token in real["added_tokens"]}
    tokens += [added.get(rank, f"<|t{rank}|>") for rank in range(len(tokens), 51864)]
    variables[EMBEDDINGS] = np.zeros((51864, 8), np.float16)
    model.write_bytes(ctranslate2_bytes(variables))
    (model.parent / "tokenizer.json").unlink()
    (model.parent / "vocabulary.json").write_text(json.dumps(tokens))
    made = json.loads(load_checkpoint(model).tokenizer_json)
    assert [" ".join(pair) for pair in made["model"]["merges"]] == real["model"]["merges"]
    assert {token["content"]: token["id"] for token in made["added_tokens"]}.items() >= {
        (content, rank)
        for rank, content in added.items()
        if content not in ("<|nocaptions|>", "<|iw|>")  # by their other names here: nospeech, he
    }


def test_another_model_is_named_as_what_it_is(model: Path) -> None:
    variables = ctranslate2_variables(arrays_of())
    for changes, message in (
        ({"spec": "TransformerSpec"}, r"another kind \(TransformerSpec, revision 3\), not a Whisper"),
        ({"spec": "Wav2Vec2Spec", "revision": 1}, r"another kind \(Wav2Vec2Spec"),
        ({"revision": 4}, r"another kind \(WhisperSpec, revision 4\)"),
        ({"version": 7}, "binary version 7, expected 6"),
    ):
        model.write_bytes(ctranslate2_bytes(variables, **changes))
        with pytest.raises(UnknownFormat, match=message):
            load_checkpoint(model)


def changed(**changes: NDArray[Any] | None) -> bytes:
    """The small model with other variables, by names with __ for /; None takes one out."""
    variables = ctranslate2_variables(arrays_of())
    for name, array in changes.items():
        variables.pop(name.replace("__", "/"), None)
        if array is not None:
            variables[name.replace("__", "/")] = array
    return ctranslate2_bytes(variables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder__embeddings__weight": None}, "alias of decoder/embeddings/weight, which is missing"),
        ({"encoder__conv1__weight": None}, "tensor encoder/conv1/weight is missing"),
        ({"encoder__conv1__weight": np.zeros(8, np.float16)}, r"encoder/conv1/weight is missing or has shape \[8\]"),
        ({"encoder__num_heads": None}, "the number encoder/num_heads is missing"),
        ({"encoder__num_heads": np.zeros(2, np.int16)}, "the number encoder/num_heads is missing"),
        ({"encoder__num_heads": np.array(3, np.int16)}, "does not divide into n_audio_head = 3"),
        ({"decoder__num_heads": np.array(-2, np.int16)}, "n_text_head must be a whole number"),
        ({"decoder__activation": np.array(0, np.int8)}, "decoder/activation is 0, which no Whisper has"),
        ({"decoder__pre_norm": np.array(0, np.int8)}, "decoder/pre_norm is 0"),
        ({"decoder__alibi": np.array(1, np.int8)}, "decoder/alibi is 1"),
        ({"decoder__novelty": np.array(1, np.int8)}, "decoder/novelty is 1"),
        ({"decoder__projection__weight": np.zeros((283, 8), np.float16)}, None),
        ({"encoder__conv1__bias": np.zeros(8, np.int32)}, "conv1/bias has dtype int32 and no scale"),
        ({"encoder__conv1__weight": np.zeros((8, 4, 3), np.int8)}, "conv1/weight has dtype int8 and no scale"),
        (
            {"decoder__layer_0__self_attention__linear_0__weight": np.zeros((23, 8), np.float16)},
            r"decoder/layer_0/self_attention/linear_0/weight has shape \[23, 8\], expected \[24, 8\]",
        ),
        (
            {"decoder__layer_0__attention__linear_1__bias": np.zeros(8, np.float16)},
            r"decoder/layer_0/attention/linear_1/bias has shape \[8\], expected \[16\]",
        ),
        ({"decoder__layer_9__ffn__linear_0__bias": np.zeros(32, np.float16)}, r"decoder/layer_2/\S+ .* is missing"),
        ({"encoder__x": np.zeros(2, np.float16)}, "tensor encoder/x does not belong"),
    ],
)
def test_what_no_whisper_has_is_refused(changes: dict[str, Any], message: str | None, model: Path) -> None:
    model.write_bytes(changed(**changes))
    if message is None:  # the alias in the file's own table comes last
        assert load_checkpoint(model).dims == DIMS
        return
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model)


def test_an_output_of_its_own_is_refused(model: Path) -> None:
    variables = ctranslate2_variables(arrays_of()) | {"decoder/projection/weight": np.zeros((283, 8), np.float16)}
    model.write_bytes(ctranslate2_bytes(variables, ()))
    with pytest.raises(CheckpointError, match="decoder/projection/weight is not decoder/embeddings/weight"):
        load_checkpoint(model)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (np.ones(7, np.float32), r"cannot be scaled by float32 \[7\], expected float32 \[8\]"),
        (np.ones(8, np.float16), r"cannot be scaled by float16 \[8\]"),
        (np.zeros(8, np.float32), "has a scale that is not a number above 0"),
        (np.full(8, 1e-37, np.float32), "has a scale that is not a number above 0"),
        (np.full(8, np.nan, np.float32), "has a scale that is not a number above 0"),
        (np.full(8, np.inf, np.float32), "has a scale that is not a number above 0"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scale: NDArray[Any], message: str, model: Path) -> None:
    values = np.zeros((8, 4, 3), np.int8)
    model.write_bytes(changed(encoder__conv1__weight=values, encoder__conv1__weight_scale=scale))
    with pytest.raises(CheckpointError, match=f"tensor encoder/conv1/weight .*{message}"):
        load_checkpoint(model)


def test_every_boundary_is_watched(model: Path) -> None:
    """Cut at each byte of the first headers and of the aliases, and at each tensor's end; or with more behind it."""
    data = model.read_bytes()
    ends = [data.index(name.encode()) for name in ctranslate2_variables(arrays_of())]
    for cut in {*range(80), *ends, *(end - 2 for end in ends), *range(len(data) - 80, len(data))}:
        model.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"model\.bin"):
            load_checkpoint(model)
    model.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match=r"model\.bin: has 1 bytes after its end"):
        load_checkpoint(model)


def test_lengths_and_counts_are_bounded(model: Path) -> None:
    data = model.read_bytes()
    first = data.index(b"decoder/activation") - 2
    for at, code, value in (
        (first - 4, "I", 2**32 - 1),  # variables
        (first - 4, "I", 1000),
        (first, "H", 65_535),  # a name's length
        (first + 21, "B", 255),  # a rank
        (first + 22, "B", 9),  # a dtype
        (first + 23, "I", 2**32 - 1),  # bytes
        (first + 23, "I", 0),
        (len(data) - 4 - 2 * 28, "I", 2**32 - 1),  # aliases
    ):
        model.write_bytes(data[:at] + struct.pack(f"<{code}", value) + data[at + struct.calcsize(code) :])
        with pytest.raises(CheckpointError, match=r"model\.bin"):
            load_checkpoint(model)
    model.write_bytes(data.replace(b"decoder/alibi", b"decoder\nalibi"))
    with pytest.raises(CheckpointError, match=r"model\.bin: has a damaged name before byte \d+$"):
        load_checkpoint(model)
    twice = data.replace(b"decoder/alignment_layer", b"decoder/alignment_heads")
    model.write_bytes(twice)
    with pytest.raises(CheckpointError, match="has tensor decoder/alignment_heads twice"):
        load_checkpoint(model)
    model.write_bytes(data)
    (model.parent / "config.json").write_text('{"alignment_heads": [[7, 0]]}')
    with pytest.raises(CheckpointError, match=r"config\.json: alignment head \[7, 0\]"):
        load_checkpoint(model)
    (model.parent / "config.json").unlink()
    assert load_checkpoint(model).alignment_heads == ((1, 0), (1, 1))
