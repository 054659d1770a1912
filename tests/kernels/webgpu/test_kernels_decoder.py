"""The decoder's kernels against float64, in both tilings, over odd sizes and every subgroup size there is."""

import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.webgpu.decoder.kernels import Tiling
from kernels.webgpu.decoder.state import Row, mask_words, state_words
from kernels.webgpu.device import Device
from kernels.webgpu.recording import Recording
from kernels.webgpu.wgsl import SUBGROUP, WORKGROUP, Parameters
from tests.support.decoding import pack_cross, rules_of, small_tiling

Array = NDArray[Any]
F32 = 2e-5  # how far a kernel may be from float64


@pytest.fixture(params=[SUBGROUP, WORKGROUP])
def tiling(request: pytest.FixtureRequest, device: Device) -> Tiling:
    return small_tiling(device, request.param)


def close(found: Array, expected: Array, tolerance: float) -> bool:
    """Whether every element is within `tolerance` of the expected, relative to the largest of them."""
    return bool(np.abs(found - expected).max() <= tolerance * max(1.0, float(np.abs(expected).max())))


def norm64(x: Array, norm: Array) -> Array:
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    normed: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * norm[0] + norm[1]
    return normed


def gelu64(x: Array) -> Array:
    return np.array([0.5 * v * (1 + math.erf(v / 2**0.5)) for v in x.ravel()]).reshape(x.shape)


def softmax64(x: Array) -> Array:
    shares: Array = np.exp(x - x.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return shares


class Bench:
    """One kernel run over arrays, in a tiling."""

    def __init__(self, device: Device, tiling: Tiling) -> None:
        self.device, self.tiling = device, tiling
        self.rng = np.random.default_rng(7)

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def run(
        self,
        name: str,
        parameters: Parameters,
        constants: Mapping[str, float],
        arrays: list[Array],
        dispatch: Sequence[int],
        rows: tuple[int, int] | None = None,
    ) -> list[Array]:
        """Every array after the kernel, in its own type and shape. `rows`: its params, first and end, if it has any."""
        buffers = [self.device.buffer(array) for array in arrays]
        if rows is not None:
            buffers.append(self.device.buffer(np.array(rows, np.uint32), uniform=True))
        recording = Recording(self.device)
        recording.dispatch(self.device.pipeline(name, parameters, constants), buffers, *dispatch)
        self.device.submit(recording)
        found = []
        for buffer, array in zip(buffers, arrays, strict=False):
            found.append(self.device.read(buffer, array.dtype)[: array.size].reshape(array.shape))
            buffer.close()
        return found

    def linear(
        self, kernel: str, rows: int, n_out: int, constants: Mapping[str, float], arrays: list[Array]
    ) -> list[Array]:
        t, tile_rows = self.tiling, 1 if rows == 1 else 4
        constants = {**t.constants(), "TILES": 2, "N_OUT": n_out, **constants}
        dispatch = (-(-n_out // (t.per_tile * 2)), -(-rows // tile_rows))
        own = (0, rows) if kernel == "ln_qkv" else None
        parameters: Parameters = {"reduction": t.reduction, "rows": tile_rows}
        return self.run(f"decoder_{kernel}", parameters, constants, arrays, dispatch, own)


@pytest.fixture
def bench(device: Device, tiling: Tiling) -> Bench:
    return Bench(device, tiling)


def padded(x: Array) -> Array:
    """Rows as the decoder's buffers hold them: 16, whatever the number in use."""
    return np.concatenate([x, np.zeros((16 - len(x), *x.shape[1:]), x.dtype)])


SIZES = [(1, 8, 8), (3, 136, 40), (16, 384, 132), (1, 384, 1152)]


@pytest.mark.parametrize(("rows", "n_in", "n_out"), SIZES)
def test_kernel_ln_linear(bench: Bench, rows: int, n_in: int, n_out: int) -> None:
    x, norm, bias = bench.normal(rows, n_in, scale=3) + 1, bench.normal(2, n_in), bench.normal(n_out)
    weight = bench.normal(n_out, n_in, scale=n_in**-0.5).astype(np.float16)
    for gelu, scale in ((0, 0.125), (1, 1.0)):
        arrays = [
            padded(x),
            norm,
            weight,
            bias,
            state_words([Row(0, 0, 0)] * rows, 8),
            np.zeros((16, n_out), np.float32),
        ]
        constants = {"N_IN": n_in, "GELU": gelu, "SCALE": scale}
        y = bench.linear("ln_linear", rows, n_out, constants, arrays)[-1][:rows]
        expected = norm64(x, norm) @ weight.T.astype(np.float64) + bias
        assert close(y, (gelu64(expected) if gelu else expected) * scale, F32)


@pytest.mark.parametrize(("rows", "n_in", "n_out"), SIZES)
def test_kernel_linear_residual(bench: Bench, rows: int, n_in: int, n_out: int) -> None:
    x, y, bias = bench.normal(rows, n_in), bench.normal(rows, n_out), bench.normal(n_out)
    weight = bench.normal(n_out, n_in, scale=n_in**-0.5).astype(np.float16)
    arrays = [padded(x), weight, bias, state_words([Row(0, 0, 0)] * rows, 8), padded(y)]
    found = bench.linear("linear_residual", rows, n_out, {"N_IN": n_in}, arrays)[-1][:rows]
    assert close(found, y + x.astype(np.float64) @ weight.T.astype(np.float64) + bias, F32)


@pytest.mark.parametrize(("rows", "heads", "splits"), [(1, 1, 1), (3, 2, 5), (16, 6, 3)])
def test_kernel_combine_residual(bench: Bench, rows: int, heads: int, splits: int) -> None:
    n = 64 * heads
    parts, y, bias = bench.normal(rows, splits, n), bench.normal(rows, n), bench.normal(n)
    stats = np.stack([bench.normal(rows, heads, splits, scale=5), 1 + bench.normal(rows, heads, splits) ** 2], -1)
    weight = bench.normal(n, n, scale=n**-0.5).astype(np.float16)
    constants = {"N_IN": n, "SPLITS": splits, "HEAD8": 8}
    state = state_words([Row(0, 0, 0)] * rows, 8)
    arrays = [padded(parts), padded(stats), weight, bias, state, padded(y)]
    found = bench.linear("combine_residual", rows, n, constants, arrays)[-1][:rows]
    share = np.exp(stats[..., 0].astype(np.float64) - stats[..., :1, 0].max(-1, keepdims=True))
    mixed = (parts.reshape(rows, splits, heads, 64) * share.transpose(0, 2, 1)[..., None]).sum(1)
    x = mixed / (share * stats[..., 1]).sum(-1)[..., None]
    assert close(found, y + x.reshape(rows, n) @ weight.T.astype(np.float64) + bias, F32)


@pytest.mark.parametrize(("rows", "n"), [(1, 8), (3, 136), (6, 384)])
def test_kernel_ln_qkv(bench: Bench, rows: int, n: int) -> None:
    n_ctx = 5
    x, norm, bias = bench.normal(rows, n), bench.normal(2, n), bench.normal(3 * n)
    weight = bench.normal(3 * n, n, scale=n**-0.5).astype(np.float16)
    places = [Row(0, r % 2, 1 + r // 2) for r in range(rows)]
    keys, values = np.zeros((2, n // 8, n_ctx, 8), np.float32), np.zeros((2, n_ctx, n // 8, 8), np.float32)
    arrays = [padded(x), norm, weight, bias, state_words(places, 8), np.zeros((16, n), np.float32), keys, values]
    constants = {"N_IN": n, "N_TEXT_CTX": n_ctx, "SCALE": 0.5}
    *_, query, keys, values = bench.linear("ln_qkv", rows, 3 * n, constants, arrays)
    q, k, v = np.split(norm64(x, norm) @ weight.T.astype(np.float64) + bias, 3, axis=1)
    assert close(query[:rows], q * 0.5, F32)
    for row, place in enumerate(places):
        assert close(keys[place.slot, :, place.position].reshape(-1), k[row], F32)
        assert close(values[place.slot, place.position].reshape(-1), v[row], F32)
    assert np.count_nonzero(keys[:, :, 0]) == np.count_nonzero(values[:, 0]) == 0  # nothing else was written


@pytest.mark.parametrize(("rows", "heads", "width", "n_ctx"), [(1, 1, 8, 1), (3, 2, 24, 129), (2, 6, 64, 448)])
def test_kernel_self_attention(bench: Bench, rows: int, heads: int, width: int, n_ctx: int) -> None:
    n, slots = heads * width, 3
    query = bench.normal(rows, n)
    keys, values = bench.normal(slots, n // 8, n_ctx, 8), bench.normal(slots, n_ctx, n // 8, 8)
    table = bench.rng.integers(0, slots, (slots, n_ctx)).astype(np.uint32)
    places = [Row(0, r % slots, max(0, n_ctx - 1 - 2 * r)) for r in range(rows)]
    state = state_words(places, 8)
    arrays = [padded(query), keys, values, table, state, np.zeros((16, n), np.float32)]
    constants = {"WORKGROUP": bench.tiling.attention_workgroup, "HEAD8": width // 8, "N_HEAD": heads, "N_CTX": n_ctx}
    parameters: Parameters = {"over": "self", "reduction": bench.tiling.reduction, "rows": 1}
    y = bench.run("decoder_attention", parameters, constants, arrays, (heads, rows), (0, rows))[-1]
    for row, place in enumerate(places):
        at = np.arange(place.position + 1)
        used = table[place.slot, at]
        k = keys[used, :, at].reshape(len(at), heads, width).astype(np.float64)
        v = values[used, at].reshape(len(at), heads, width).astype(np.float64)
        share = softmax64(np.einsum("hd,thd->ht", query[row].reshape(heads, width), k))
        assert close(y[row].reshape(heads, width), np.einsum("ht,thd->hd", share, v), F32)


@pytest.mark.parametrize(
    ("rows", "heads", "n_ctx", "splits"), [(1, 1, 1, 1), (3, 2, 129, 4), (2, 6, 1500, 3), (1, 1, 5, 4)]
)
def test_kernel_cross_attention(bench: Bench, rows: int, heads: int, n_ctx: int, splits: int) -> None:
    n = heads * 64
    query = bench.normal(rows, n)
    k, v = bench.normal(n_ctx, n), bench.normal(n_ctx, n)
    keys, values, scales = pack_cross(k, v, heads)
    k, v = (
        integers.reshape(n_ctx, heads, 64) * scale.T[:, :, None].astype(np.float64)
        for integers, scale in ((keys.transpose(1, 0, 2), scales[0]), (values, scales[1]))
    )
    parts, stats = np.zeros((16, splits, n), np.float32), np.zeros((16, heads, splits, 2), np.float32)
    arrays = [padded(query), keys, values, scales, state_words([Row(0, 0, 0)] * rows, 8), parts, stats]
    constants = {"WORKGROUP": bench.tiling.attention_workgroup, "N_HEAD": heads, "N_CTX": n_ctx, "SPLITS": splits}
    tile_rows = 1 if rows == 1 else 4
    parameters: Parameters = {"over": "cross", "reduction": bench.tiling.reduction, "rows": tile_rows}
    dispatch = heads, -(-rows // tile_rows), splits
    *_, parts, stats = bench.run("decoder_attention", parameters, constants, arrays, dispatch, (0, rows))
    share = np.exp(stats[:rows, ..., 0].astype(np.float64) - stats[:rows, ..., 0].max(-1, keepdims=True))
    mixed = (parts[:rows].reshape(rows, splits, heads, 64) * share.transpose(0, 2, 1)[..., None]).sum(1)
    found = mixed / (share * stats[:rows, ..., 1]).sum(-1)[..., None]
    weights = softmax64(np.einsum("rhd,thd->rht", query.reshape(rows, heads, 64), k))
    assert close(found, np.einsum("rht,thd->rhd", weights, v), F32)


@pytest.mark.parametrize(("rows", "n_in", "n_vocab"), [(1, 8, 7), (3, 136, 405), (16, 384, 1001)])
def test_kernel_ln_logits(bench: Bench, rows: int, n_in: int, n_vocab: int) -> None:
    begin = n_vocab * 2 // 3
    x, norm = bench.normal(rows, n_in), bench.normal(2, n_in)
    table = bench.normal(n_vocab, n_in, scale=n_in**-0.5).astype(np.float16)
    rules = rules_of(n_vocab=n_vocab, eot=0, timestamp_begin=begin, suppress=[1, n_vocab - 1])
    histories = [[begin + 1] if r % 2 else [0, 2] for r in range(rows)]
    state = state_words([Row(0, r, 0) for r in range(rows)], n_vocab, [(rules, history) for history in histories])
    groups = -(-n_vocab // (bench.tiling.per_tile * 2))
    partials = np.zeros((16, groups, 2, 4), np.float32)
    arrays = [padded(x), norm, table, state, mask_words(rules, n_vocab), np.zeros((16, n_vocab), np.float32), partials]
    constants = {"N_IN": n_in, "N_VOCAB": n_vocab, "N_GROUPS": groups}
    *_, logits, partials = bench.linear("ln_logits", rows, n_vocab, constants, arrays)
    expected = norm64(x, norm) @ table.T.astype(np.float64)
    assert close(logits[:rows], expected, F32)
    for row, history in enumerate(histories):
        allowed = expected[row].copy()
        allowed[[1, n_vocab - 1]] = -np.inf
        low = history[-1] + 1 if history[-1] > begin else begin
        if len(history) == 1:  # its only token is a timestamp: its pair may not be one again
            allowed[begin:] = -np.inf
        allowed[begin:low] = -np.inf
        for kind, part in enumerate((allowed[:begin], allowed[begin:])):
            found = partials[row, :, kind].astype(np.float64)
            if np.isneginf(part).all():
                assert not found[:, 2].any()
                continue
            best = found[:, 0].argmax()
            assert close(found[best, 0], part.max(), F32)
            assert found[best, 1] == part.argmax() + kind * begin
            total = (found[:, 2] * np.exp(found[:, 0] - part.max())).sum()
            assert abs(total / np.exp(part - part.max()).sum() - 1) < 1e-4


@pytest.mark.parametrize("width", ["128", "256"])
def test_kernels_hold_at_other_subgroup_sizes(width: str, device: Device) -> None:
    """lavapipe's subgroups have 4, 8 or 16 lanes, settled when a process first asks for an adapter."""
    if os.environ.get("LP_NATIVE_VECTOR_WIDTH") == width or "llvmpipe" not in device.info.name:
        pytest.skip(f"{device.info.name} is tested here, at the one size it has")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "test_kernel_ and subgroup",
    ]
    run = subprocess.run(
        command, env={**os.environ, "LP_NATIVE_VECTOR_WIDTH": width}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-3000:]
