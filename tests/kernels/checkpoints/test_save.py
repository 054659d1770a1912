"""Checkpoints saved in other dtypes: what a reader gets back, and which quantised weights are rejected."""

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from kernels.checkpoints.load import CheckpointError, load_checkpoint
from kernels.checkpoints.quantised import COARSE_STEP, GROUP_SIZE, quantise, quantise_coarsely
from kernels.checkpoints.save import save_checkpoint
from kernels.cpu.model import CpuModel
from tests.support.checkpoint_files import arrays_of, write_burn, write_huggingface, write_openai

NAME = "model.decoder.layers.0.fc1.weight"


@pytest.fixture
def int8(tmp_path: Path) -> Path:
    """A folder with a small checkpoint in int8."""
    (tmp_path / "from").mkdir()
    checkpoint = load_checkpoint(write_huggingface(tmp_path / "from", arrays_of()))
    save_checkpoint(checkpoint, tmp_path / "int8", "int8")
    return tmp_path / "int8"


@pytest.mark.parametrize("columns", [2 * GROUP_SIZE, GROUP_SIZE + 2])
def test_a_weight_moves_by_half_a_step_at_most(columns: int) -> None:
    weights = np.random.default_rng(1).normal(0, 0.1, (5, columns)).astype(np.float32)
    weights[1] = 0
    weights[2, 3] = 40  # one large weight must cost its own group alone
    quantised = quantise(weights)
    steps = np.repeat(quantised.scales.astype(np.float32), columns // quantised.scales.shape[1], axis=1)
    # Scales are f16: the largest weight of a group may lie 2⁻¹¹ of itself beyond the last step.
    assert np.all(np.abs(quantised.dequantise() - weights) <= steps / 2 + np.abs(weights) * 2**-11)
    assert quantised.values.min() >= -127
    assert quantised.scales.shape == (5, columns // GROUP_SIZE if columns % GROUP_SIZE == 0 else 1)


def test_coarse_steps_compress_better_for_the_same_error() -> None:
    weights = (np.random.default_rng(3).normal(0, 0.1, (64, 384)) * np.geomspace(0.1, 10, 64)[:, None]).astype(
        np.float32
    )
    weights[0] = 0
    weights[1, 3] = 60  # a row with a weight that a fifth of its root mean square, 127 times, does not reach
    coarse, fine = quantise_coarsely(weights), quantise(weights)
    assert coarse.scales.shape == (64, 1) and coarse.values.dtype == np.int8
    steps = coarse.scales.astype(np.float32)
    assert np.all(np.abs(coarse.dequantise() - weights) <= steps / 2 + np.abs(weights) * 2**-11)
    spread = np.sqrt(np.square(weights[2:]).mean(axis=1))
    np.testing.assert_allclose(steps[2:, 0], spread * COARSE_STEP, rtol=1e-3)
    assert len(zlib.compress(coarse.values.tobytes())) < 0.75 * len(zlib.compress(fine.values.tobytes()))


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_floats_come_back_as_they_were(dtype: str, tmp_path: Path) -> None:
    for write in (write_openai, write_burn):
        source = tmp_path / write.__name__
        source.mkdir()
        checkpoint = load_checkpoint(write(source, arrays_of()))
        checkpoint = replace(checkpoint, num_beams=5, condition_on_prev_tokens=False)
        save_checkpoint(checkpoint, source / "saved", dtype)
        saved = load_checkpoint(source / "saved")
        assert (saved.dims, saved.alignment_heads) == (checkpoint.dims, checkpoint.alignment_heads)
        assert saved.is_multilingual == checkpoint.is_multilingual
        assert (saved.num_beams, saved.condition_on_prev_tokens) == (5, False)
        assert saved.tokenizer_json == checkpoint.tokenizer_json
        for name, array in checkpoint.arrays.items():
            assert saved.arrays[name].dtype == {"f16": np.float16, "f32": np.float32}[dtype]
            np.testing.assert_array_equal(saved.arrays[name], array)


def test_int8_is_close_and_says_what_it_is(int8: Path) -> None:
    arrays = load_checkpoint(int8).arrays
    for name, array in arrays_of().items():
        limit = 0 if array.ndim != 2 or not name.endswith(".weight") else np.abs(array).max() / 127 * 0.55
        np.testing.assert_allclose(arrays[name], array, rtol=0, atol=limit, err_msg=name)
    stored = load_file(int8 / "model.safetensors")
    assert stored[NAME].dtype == np.int8 and stored[f"{NAME}_scale"].dtype == np.float16
    assert json.loads((int8 / "config.json").read_text())["quantization_config"]["format"] == "int-quantized"


def test_coarse_int8_says_that_a_row_has_one_scale(int8: Path) -> None:
    save_checkpoint(load_checkpoint(int8.parent / "from"), int8.parent / "coarse", "int8-coarse")
    stored = load_file(int8.parent / "coarse/model.safetensors")
    assert stored[f"{NAME}_scale"].shape == (len(stored[NAME]), 1)
    [group] = json.loads((int8.parent / "coarse/config.json").read_text())["quantization_config"][
        "config_groups"
    ].values()
    assert group["weights"] == {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}


@pytest.mark.parametrize("dtype", ["int8", "int8-coarse"])
def test_an_int8_checkpoint_serves(int8: Path, dtype: str) -> None:
    exact = CpuModel(load_checkpoint(int8.parent / "from"))
    save_checkpoint(load_checkpoint(int8.parent / "from"), int8.parent / "saved", dtype)
    rounded = CpuModel(load_checkpoint(int8.parent / "saved"))
    mel = np.random.default_rng(2).normal(size=(1, exact.dims.n_mels, 2 * exact.dims.n_audio_ctx)).astype(np.float32)
    states = []
    for model in (exact, rounded):
        context = model.encoder.init_execution_context({})
        context.set_input(0, mel)
        context.compute()
        states.append(context.get_output(0))
        context.close()
        model.close()
    most = {"int8": 0.05, "int8-coarse": 0.2}[dtype]
    assert 0 < np.linalg.norm(states[1] - states[0]) < most * np.linalg.norm(states[0])


def test_what_cannot_be_saved_is_refused(int8: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(int8)
    with pytest.raises(ValueError, match="int4 is not one of f32, f16, int8, int8-coarse"):
        save_checkpoint(checkpoint, tmp_path / "new", "int4")
    with pytest.raises(ValueError, match="is not empty"):
        save_checkpoint(checkpoint, int8, "int8")
    (tmp_path / "large").mkdir()
    large = arrays_of(np.float32) | {"encoder.conv1.bias": np.full(8, 1e6, np.float32)}
    with (
        pytest.raises(OverflowError, match=r"encoder\.conv1\.bias has a weight too large for f16"),
        np.errstate(over="ignore"),
    ):
        save_checkpoint(load_checkpoint(write_huggingface(tmp_path / "large", large)), tmp_path / "f16", "f16")


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (None, "has dtype I8 and no scales named _scale"),
        (np.ones(32, np.float16), r"of shape \[32, 8\] cannot be scaled by float16 \[32\]"),
        (np.ones((32, 3), np.float16), r"cannot be scaled by float16 \[32, 3\]"),
        (np.ones((31, 1), np.float16), r"cannot be scaled by float16 \[31, 1\]"),
        (np.ones((32, 1), np.int8), r"cannot be scaled by int8 \[32, 1\]"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scales: NDArray[Any] | None, message: str, int8: Path) -> None:
    stored = load_file(int8 / "model.safetensors")
    del stored[f"{NAME}_scale"]
    save_file(stored if scales is None else stored | {f"{NAME}_scale": scales}, int8 / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(int8)
