"""The encoder's kernels against NumPy in float64, with both reductions."""

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.webgpu.device import Device
from kernels.webgpu.encoder.program import compiled
from kernels.webgpu.encoder.weights import pack, pack_vector, padded
from kernels.webgpu.recording import Buffer, Recording
from kernels.webgpu.wgsl import SUBGROUP, Reduction
from tests.conftest import ROOT
from tests.support.closeness import assert_close, random

Array = NDArray[Any]
F32 = 2e-5  # how far a kernel's output may be from float64, relative to the largest value
WINDOWS = 2  # of a launch: each has its own rows, and one more that nothing is written to
SIZES = [(1, 1, 1), (3, 129, 129), (17, 240, 72), (150, 384, 1152)]  # rows, inner, columns


def f16(array: Array) -> Array:
    """float64 that f16 holds exactly."""
    return array.astype(np.float16).astype(np.float64)


def pack_rows(array: Array) -> NDArray[np.float32]:
    """(…, rows, n) f32, n padded with zeros to a multiple of 8."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % 8)])


def gelu(x: Array) -> Array:
    return np.asarray(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)


def layer_norm(x: Array, gain: Array, shift: Array) -> Array:
    return np.asarray((x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * gain + shift)


def run_product(
    device: Device, reduction: Reduction, kernel: str, bindings: list[Any], params: list[int], windows: int = 1
) -> None:
    """Launch a product kernel over arrays and the buffer it writes, `params` starting with rows, inner, columns."""
    rows, _, columns = params[:3]
    lanes = device.subgroup_size if reduction == SUBGROUP else None
    grid = (-(-columns // 8), -(-rows // 64)) if lanes is None else (-(-rows // 16), -(-columns // lanes))
    if lanes is not None and kernel == "norm_product":
        bindings.insert(-1, device.buffer(rows * params[1] * 16))
        grid = -(-rows // 64), 1
    buffers = [b if isinstance(b, Buffer) else device.buffer(b) for b in bindings]
    recording = Recording(device)
    pipeline = compiled(device, lanes)[kernel]
    recording.dispatch(pipeline, [*buffers, device.buffer(np.array(params, np.uint32), uniform=True)], *grid, windows)
    device.submit(recording)


@pytest.mark.parametrize(("rows", "inner", "columns"), SIZES)
@pytest.mark.parametrize("act", [False, True])
def test_product(device: Device, reduction: Reduction, rows: int, inner: int, columns: int, act: bool) -> None:
    a, weight = random(0, WINDOWS, rows + 1, inner).astype(np.float32), f16(random(1, inner, columns) / inner**0.5)
    bias = random(2, columns).astype(np.float32)
    wanted = a[:, :rows].astype(np.float64) @ weight + bias
    k, n = padded(inner), padded(columns)
    out = device.buffer(WINDOWS * (rows + 1) * n * 4)
    params = [rows, k // 4, n // 8, k // 4, n // 8, int(act), (rows + 1) * k // 4, (rows + 1) * n // 8]
    run_product(device, reduction, "product", [pack_rows(a), pack(weight), pack_vector(bias), out], params, WINDOWS)
    got = device.read(out).reshape(WINDOWS, rows + 1, -1)  # the first row is skipped
    assert_close(got[:, 1:, :columns], gelu(wanted) if act else wanted, F32)
    assert not got[:, 0].any()


@pytest.mark.parametrize(("rows", "inner", "columns"), SIZES)
@pytest.mark.parametrize("act", [False, True])
def test_product_with_residual(
    device: Device, reduction: Reduction, rows: int, inner: int, columns: int, act: bool
) -> None:
    a, weight = random(0, WINDOWS, rows + 1, inner).astype(np.float32), f16(random(1, inner, columns) / inner**0.5)
    bias, add = random(2, columns).astype(np.float32), random(3, rows, columns).astype(np.float32)
    wanted = a[:, :rows].astype(np.float64) @ weight + bias
    k, n = padded(inner), padded(columns)
    out = device.buffer(WINDOWS * (rows + 1) * n * 4)
    params = [rows, k // 4, n // 8, k // 4, 0, int(act), (rows + 1) * k // 4, (rows + 1) * n // 8]
    bindings = [pack_rows(a), pack(weight), pack_vector(bias), pack_rows(add), out]
    run_product(device, reduction, "residual", bindings, params, WINDOWS)
    got = device.read(out).reshape(WINDOWS, rows + 1, -1)
    assert_close(got[:, :rows, :columns], (gelu(wanted) if act else wanted) + add, F32)
    assert not got[:, rows].any()


@pytest.mark.parametrize(("rows", "inner", "columns"), SIZES)
@pytest.mark.parametrize("act", [False, True])
def test_product_of_layer_norm(
    device: Device, reduction: Reduction, rows: int, inner: int, columns: int, act: bool
) -> None:
    x = (random(0, rows, inner) * 3 + 5).astype(np.float32)
    weight = f16(random(1, inner, columns) / math.sqrt(inner))
    bias, gain, shift = (random(seed, n).astype(np.float32) for seed, n in ((2, columns), (3, inner), (4, inner)))
    wanted = layer_norm(x.astype(np.float64), gain, shift) @ weight + bias
    out = device.buffer(rows * padded(columns) * 4)
    params = [rows, padded(inner) // 4, padded(columns) // 8, inner, int(act)]
    bindings = [pack_rows(x), pack_vector(gain), pack_vector(shift), pack(weight), pack_vector(bias), out]
    run_product(device, reduction, "norm_product", bindings, params)
    got = device.read(out).reshape(rows, -1)[:, :columns]
    assert_close(got, gelu(wanted) if act else wanted, F32)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 129), (50, 384)])
def test_layer_norm(device: Device, rows: int, width: int) -> None:
    first = 2  # of the rows to normalise
    x = (random(0, first + rows, width) * 3 + 5).astype(np.float32)
    gain, shift = random(1, width).astype(np.float32), random(2, width).astype(np.float32)
    out = device.buffer(rows * padded(width) * 4)
    params = device.buffer(np.array([padded(width) // 4, width, first], np.uint32), uniform=True)
    recording = Recording(device)
    inputs = [pack_rows(x), pack_vector(gain), pack_vector(shift)]
    bindings = [*(device.buffer(array) for array in inputs), out, params]
    recording.dispatch(device.pipeline("encoder_layer_norm"), bindings, rows)
    device.submit(recording)
    wanted = layer_norm(x[first:].astype(np.float64), gain, shift)
    assert_close(device.read(out).reshape(rows, -1)[:, :width], wanted, F32)


@pytest.mark.parametrize(("rows", "heads", "spread"), [(1, 1, 1.0), (3, 2, 1.0), (129, 2, 1.0), (200, 1, 6.0)])
def test_attention(device: Device, reduction: Reduction, rows: int, heads: int, spread: float) -> None:
    qkv = random(0, WINDOWS, rows, 3, heads, 64)
    qkv[:, :, :2] *= spread
    q, k, v = np.moveaxis(qkv.astype(np.float32).astype(np.float64), 2, 0)
    scores = np.einsum("wqhd,wkhd->whqk", q, k) / 8
    weights = np.exp(scores - scores.max(3, keepdims=True))
    wanted = np.einsum("whqk,wkhd->wqhd", weights / weights.sum(3, keepdims=True), v)
    scale = int(np.float32(math.log2(math.e) / 8).view(np.uint32))
    params = device.buffer(np.array([rows, heads, scale], np.uint32), uniform=True)
    out = device.buffer(wanted.size * 4)
    lanes = device.subgroup_size if reduction == SUBGROUP else None
    recording = Recording(device)
    pipeline = compiled(device, lanes)["attention"]
    bindings = [device.buffer(qkv.astype(np.float32)), out, params]
    recording.dispatch(pipeline, bindings, -(-rows // (32 if lanes is None else 4 * lanes)), heads, WINDOWS)
    device.submit(recording)
    assert_close(device.read(out).reshape(wanted.shape), wanted, F32)


@pytest.mark.parametrize(("rows", "layers", "heads", "width"), [(1, 1, 1, 8), (67, 2, 3, 64), (129, 3, 2, 24)])
def test_keys_and_values_in_16_bits(device: Device, rows: int, layers: int, heads: int, width: int) -> None:
    product = (random(0, rows, layers, 2, heads, width) * np.exp(random(1, rows, layers, 2, heads, 1))).astype(
        np.float32
    )
    product[0, 0, 1, 0] = 0  # a head with nothing in it
    parts, n = 2 * layers, heads * width
    part_step, scales_step = rows * n // 8 + 3, 2 * heads * rows + 5
    packed, scales = device.buffer(parts * part_step * 16), device.buffer(layers * scales_step * 4)
    params = np.array([rows, parts, heads, width // 8, part_step, scales_step], np.uint32)
    recording = Recording(device)
    bindings = [device.buffer(product), packed, scales, device.buffer(params, uniform=True)]
    recording.dispatch(device.pipeline("encoder_cross_pack"), bindings, -(-rows // 64), heads, parts)
    device.submit(recording)
    integers = device.read(packed, np.int16).reshape(layers, 2, -1)[..., : rows * n]
    of_keys = integers[:, 0].reshape(layers, n // 8, rows, 8).transpose(2, 0, 1, 3)
    of_values = integers[:, 1].reshape(layers, rows, n).transpose(1, 0, 2)
    scale = device.read(scales).reshape(layers, -1)[:, : 2 * heads * rows].reshape(layers, 2, heads, rows)
    for kind, found in enumerate((of_keys, of_values)):
        wanted = product[:, :, kind]
        got = found.reshape(wanted.shape) * scale[:, kind].transpose(2, 0, 1)[..., None].astype(np.float64)
        assert (np.abs(got - wanted).max(-1) <= np.abs(wanted).max(-1) / 32767 * 0.501).all()


@pytest.mark.parametrize("width", ["128", "256"])
def test_other_subgroup_sizes(width: str, device: Device) -> None:
    """The same tests where lavapipe's subgroups have 4 and 8 lanes; the environment decides that once a process."""
    if os.environ.get("LP_NATIVE_VECTOR_WIDTH", "512") == width:
        pytest.skip("this is the size already tested here")
    if "llvmpipe" not in device.info.name:
        pytest.skip(f"{device.info.name} is tested here, whose subgroups have one size")
    files = [__file__, "tests/kernels/webgpu/encoder/test_graph.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "subgroup and not other", *files]
    environment = os.environ | {"LP_NATIVE_VECTOR_WIDTH": width}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
