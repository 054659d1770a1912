"""Shapes of later Whispers in every format: distilled decoders, 128 mels, 51,866 tokens; and OpenAI's own heads."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from tokenizers import Tokenizer

from kernels.checkpoints.alignment_heads import default_heads
from kernels.checkpoints.load import Dimensions, load_checkpoint
from kernels.checkpoints.save import save_checkpoint
from kernels.cpu.model import CpuModel
from service.models.languages import LANGUAGES
from tests.support.checkpoint_files import (
    Arrays,
    arrays_of,
    write_burn,
    write_ctranslate2,
    write_ggml,
    write_huggingface,
    write_openai,
    write_torch,
)

N_ORDINARY = 50_257
SHAPES = {  # narrow, and with a short window, so that they are quick
    "distil-large-v3": Dimensions(128, 20, 64, 2, 5, 51_866, 12, 64, 2, 2),
    "large-v3-turbo": Dimensions(128, 20, 64, 2, 6, 51_866, 12, 64, 4, 4),
    "distil-small.en": Dimensions(80, 20, 64, 4, 3, 51_864, 12, 64, 2, 1),
}


class ShapedWriter(Protocol):
    def __call__(self, folder: Path, arrays: Arrays, *, dims: Dimensions) -> Path: ...


WRITERS: dict[str, ShapedWriter] = {
    "safetensors": write_huggingface,
    "torch": write_torch,
    "pt": write_openai,
    "mpk": write_burn,
    "ggml": write_ggml,
    "ctranslate2": write_ctranslate2,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format_", WRITERS)
def test_it_loads_runs_and_converts(format_: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dims = SHAPES[shape]
    n_ordinary = N_ORDINARY - (dims.n_vocab == 51_864)
    tokens = [index.to_bytes(2, "big") if index > 255 else bytes([index]) for index in range(n_ordinary)]
    monkeypatch.setattr("tests.support.checkpoint_files.TOKENS", tokens)  # what a ggml file has inside
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {}
    for name, shaped in arrays_of(dims=dims).items():
        is_gain = shaped.ndim == 1 and name.endswith("weight")
        arrays[name] = (rng.normal(0, 0.05, shaped.shape) + is_gain).astype(np.float16)
    path = WRITERS[format_](tmp_path, arrays, dims=dims)
    if format_ == "ctranslate2":
        (tmp_path / "config.json").write_text("{}")
    checkpoint = load_checkpoint(path)
    assert checkpoint.dims == dims and checkpoint.is_multilingual is (dims.n_vocab > 51_864)
    upper = range(dims.n_text_layer // 2, dims.n_text_layer)
    assert checkpoint.alignment_heads == tuple((layer, head) for layer in upper for head in range(dims.n_text_head))
    if format_ == "ggml":
        tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
        assert tokenizer.get_vocab_size() == dims.n_vocab
        assert tokenizer.token_to_id("<|30.00|>") == dims.n_vocab - 1
        assert (tokenizer.token_to_id("<|yue|>") is not None) is (dims.n_vocab == 51_866)
    model = CpuModel(checkpoint)
    encoder = model.encoder.init_execution_context({})
    encoder.set_input(0, rng.normal(size=(1, dims.n_mels, 2 * dims.n_audio_ctx)).astype(np.float32))
    encoder.compute()
    states = encoder.get_output(0)
    assert states.shape == (1, dims.n_audio_ctx, dims.n_audio_state) and np.isfinite(states).all()
    encoder.close()
    model.close()
    save_checkpoint(checkpoint, tmp_path / "saved", "f16")
    saved = load_checkpoint(tmp_path / "saved")
    assert (saved.dims, saved.alignment_heads) == (dims, checkpoint.alignment_heads)
    for name, array in arrays.items():
        np.testing.assert_array_equal(saved.arrays[name], array)


def official(n_audio_layer: int, n_text_layer: int, n_head: int, n_vocab: int) -> Dimensions:
    width = 64 * n_head
    return Dimensions(80, 1500, width, n_head, n_audio_layer, n_vocab, 448, width, n_head, n_text_layer)


@pytest.mark.parametrize(
    ("name", "dims", "n_heads", "first", "last"),
    [
        ("tiny.en.pt", official(4, 4, 6, 51_864), 8, (1, 0), (3, 4)),
        ("ggml-tiny.bin", official(4, 4, 6, 51_865), 6, (2, 2), (3, 5)),
        ("base.en.pt", official(6, 6, 8, 51_864), 5, (3, 3), (5, 7)),
        ("base.pt", official(6, 6, 8, 51_865), 8, (3, 1), (5, 6)),
        ("small.en.pt", official(12, 12, 12, 51_864), 19, (6, 6), (11, 4)),
        ("small.pt", official(12, 12, 12, 51_865), 10, (5, 3), (10, 5)),
        ("medium.en.pt", official(24, 24, 16, 51_864), 18, (11, 4), (21, 12)),
        ("medium.pt", official(24, 24, 16, 51_865), 6, (13, 15), (23, 4)),
        ("large-v1.pt", official(32, 32, 20, 51_865), 9, (9, 19), (23, 15)),
        ("ggml-large-v2-q5_0.bin", official(32, 32, 20, 51_865), 23, (10, 12), (27, 15)),
        ("large-v3.pt", official(32, 32, 20, 51_866), 10, (7, 0), (25, 6)),
        ("large-v3-turbo.pt", official(32, 4, 20, 51_866), 6, (2, 4), (3, 14)),
        ("distil-large-v3.bin", official(32, 2, 20, 51_866), 20, (1, 0), (1, 19)),
        ("other.pt", official(5, 3, 6, 51_864), 12, (1, 0), (2, 5)),
    ],
)
def test_openais_models_have_their_own_heads(
    name: str, dims: Dimensions, n_heads: int, first: tuple[int, int], last: tuple[int, int]
) -> None:
    heads = default_heads(Path(name), dims)
    assert (len(heads), heads[0], heads[-1]) == (n_heads, first, last)
    assert len(set(heads)) == n_heads
    assert all(0 <= layer < dims.n_text_layer and 0 <= head < dims.n_text_head for layer, head in heads)


def test_a_models_own_list_is_believed(shared: Path, tmp_path: Path) -> None:
    assert len(LANGUAGES) == 100
    listed = load_checkpoint(shared / "models/tiny_en").alignment_heads
    assert listed == default_heads(tmp_path / "x", official(4, 4, 6, 51_864))
