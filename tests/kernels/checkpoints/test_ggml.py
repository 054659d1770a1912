"""whisper.cpp's ggml files: the quantised types against their formulas; errors name the rejected part."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.checkpoints.common import UnknownFormat
from kernels.checkpoints.ggml_blocks import BLOCK, LAYOUTS, Blocks
from kernels.checkpoints.load import CheckpointError, load_checkpoint
from kernels.checkpoints.save import save_checkpoint
from kernels.cpu.model import CpuModel
from tests.support.checkpoint_files import DIMS, GGML_TYPES, Arrays, arrays_of, quantise_blocks, write_ggml

every_type = pytest.mark.parametrize("kind", GGML_TYPES)
WIDE = replace(DIMS, n_audio_state=64, n_text_state=64)  # rows that blocks of 32 divide


def blocks_of(data: bytes, kind: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    layout, zero = LAYOUTS[kind]
    return Blocks(np.frombuffer(data, layout), zero, shape).dequantise()


def by_hand(block: bytes, kind: str) -> list[float]:
    """One block's values, one at a time, after ggml's dequantize_row_*."""
    values = [0.0] * BLOCK
    (d,) = struct.unpack_from("<e", block)
    if kind == "q8_0":
        return [d * value for value in struct.unpack_from("<32b", block, 2)]
    m = struct.unpack_from("<e", block, 2)[0] if kind.endswith("1") else -d * (16 if kind == "q5_0" else 8)
    (high,) = struct.unpack_from("<I", block, len(block) - 20) if "5" in kind else (0,)
    for j, byte in enumerate(block[-16:]):
        values[j] = ((byte & 15) | ((high >> j) & 1) << 4) * d + m
        values[j + 16] = ((byte >> 4) | ((high >> (j + 16)) & 1) << 4) * d + m
    return values


@every_type
def test_blocks_are_read_as_ggml_reads_them(kind: str) -> None:
    rng = np.random.default_rng(1)
    size = LAYOUTS[kind][0].itemsize
    assert size == {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34}[kind]
    scales = rng.normal(0, 0.1, (6, 2)).astype(np.float16)
    data = b""
    for d, m in scales:
        extra = m.tobytes() if kind.endswith("1") else b""
        data += d.tobytes() + extra + rng.bytes(size - 2 - len(extra))
    expected = [by_hand(data[at : at + size], kind) for at in range(0, len(data), size)]
    np.testing.assert_allclose(blocks_of(data, kind, (2, 3 * BLOCK)), np.reshape(expected, (2, 96)), rtol=1e-6)


@every_type
def test_a_weight_moves_by_no_more_than_its_formula_says(kind: str) -> None:
    weights = np.random.default_rng(2).normal(0, 0.1, (7, 3 * BLOCK)).astype(np.float32)
    weights[1] = 0
    weights[2, 3] = 40  # one large weight must cost its own block alone
    back = blocks_of(quantise_blocks(weights, kind), kind, weights.shape)
    bits = int(kind[1])
    rows, found = weights.reshape(-1, BLOCK), back.reshape(-1, BLOCK)
    if kind.endswith("1"):
        steps = (rows.max(axis=1) - rows.min(axis=1)) / (2**bits - 1)
    else:
        steps = np.abs(rows).max(axis=1) / (127 if bits == 8 else 2 ** (bits - 1))
    # Half a step, a whole one at the end that the steps do not reach, and an f16 scale's rounding.
    reach = 0.5 if kind in ("q8_0", "q4_1", "q5_1") else 1.0
    limit = reach * steps[:, None] + 2**-10 * np.abs(rows).max(axis=1)[:, None]
    assert np.all(np.abs(found - rows) <= limit + 1e-7)


@every_type
def test_a_quantised_file_loads_converts_and_runs(kind: str, tmp_path: Path) -> None:
    arrays = arrays_of(np.float32, WIDE)
    exact = load_checkpoint(write_ggml(tmp_path, arrays, dims=WIDE))
    (tmp_path / kind).mkdir()
    checkpoint = load_checkpoint(write_ggml(tmp_path / kind, arrays, kind=kind, dims=WIDE))
    assert checkpoint.dims == WIDE and checkpoint.tokenizer_json == exact.tokenizer_json
    n_changed = 0
    for name, array in arrays.items():
        loaded = checkpoint.arrays[name]
        assert loaded.shape == array.shape and loaded.dtype in (np.float16, np.float32)
        n_changed += not np.array_equal(loaded, array)
        np.testing.assert_allclose(loaded, array, rtol=0, atol=2 / 8 if kind[1] == "4" else 2 / 16, err_msg=name)
    assert n_changed > 20
    save_checkpoint(checkpoint, tmp_path / "saved", "f32")
    saved = load_checkpoint(tmp_path / "saved")
    for name in arrays:
        np.testing.assert_array_equal(saved.arrays[name], checkpoint.arrays[name])
    model = CpuModel(checkpoint)
    context = model.encoder.init_execution_context({})
    context.set_input(0, np.zeros((1, WIDE.n_mels, 2 * WIDE.n_audio_ctx), np.float32))
    context.compute()
    assert np.isfinite(context.get_output(0)).all()
    context.close()
    model.close()


def with_type(arrays: Arrays, folder: Path, number: int, ftype: int) -> Path:
    """A q8_0 file whose first quantised tensor claims another type."""
    path = write_ggml(folder, arrays, kind="q8_0", dims=WIDE)
    data = bytearray(path.read_bytes())
    at = data.index(b"encoder.blocks.0.attn.query.weight") - 8 - 4
    data[at : at + 4] = struct.pack("<i", number)
    data[44:48] = struct.pack("<i", ftype)
    path.write_bytes(data)
    return path


def test_other_types_are_named(tmp_path: Path) -> None:
    arrays = arrays_of(np.float32, WIDE)
    for number, name in ((12, "q4_K"), (14, "q6_K"), (20, "iq4_nl"), (9, "q8_1")):
        with pytest.raises(UnknownFormat, match=rf"small\.bin: tensor \S+query.weight is of {name}, expected f32, f16"):
            load_checkpoint(with_type(arrays, tmp_path, number, 2007))
    with pytest.raises(CheckpointError, match="is of type 77, expected") as error:
        load_checkpoint(with_type(arrays, tmp_path, 77, 2007))
    assert error.value.may_be_damage
    with pytest.raises(UnknownFormat, match=r"ftype 3007"):
        load_checkpoint(with_type(arrays, tmp_path, 8, 3007))
    assert load_checkpoint(with_type(arrays, tmp_path, 8, 7)).dims == WIDE  # as tools write that know no versions


def test_rows_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    path = write_ggml(tmp_path, arrays_of())
    data = bytearray(path.read_bytes())
    at = data.index(b"encoder.blocks.0.attn.query.weight") - 8 - 4
    data[at : at + 4] = struct.pack("<i", 8)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="has rows of 8 values, which q8_0 cannot divide into blocks of 32"):
        load_checkpoint(path)


@every_type
def test_every_tensors_end_is_watched(kind: str, tmp_path: Path) -> None:
    arrays: dict[str, Any] = arrays_of(np.float32, WIDE)
    path = write_ggml(tmp_path, arrays, kind=kind, dims=WIDE)
    data = path.read_bytes()
    for name in arrays:
        for cut in (data.index(name.encode()) - 20, data.index(name.encode()) + len(name), len(data) - 1):
            path.write_bytes(data[:cut])
            with pytest.raises(CheckpointError, match=r"small\.bin: (is cut short|tensor \S+ .* is missing|has a dam)"):
                load_checkpoint(path)
    path.write_bytes(data + data[data.index(b"decoder.ln.bias") - 16 :])
    with pytest.raises(CheckpointError, match=r"small\.bin: has tensor decoder\.ln\.bias twice"):
        load_checkpoint(path)
