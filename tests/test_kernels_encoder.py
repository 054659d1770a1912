"""The encoder's kernels against NumPy in float64, in both tilings."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.device import Device, list_adapters, open_device
from kernels.encoder_program import Tiling, choose_tiling, pack, pack_vector, padded
from kernels.recording import Buffer, Recording
from tests.conftest import ROOT

Array = NDArray[Any]
F32, F16 = 2e-5, 2e-3  # how far a kernel's output of that type may be from float64, relative to the largest value
SIZES = [(1, 1, 1), (3, 129, 129), (17, 240, 72), (150, 384, 1152)]  # rows, inner, columns
TILINGS: list[Tiling] = ["subgroup", "tile"]


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    if not list_adapters():
        pytest.skip("no WebGPU adapter on this machine")
    opened = open_device()
    yield opened
    opened.close()


@pytest.fixture(params=TILINGS)
def tiling(request: pytest.FixtureRequest, device: Device) -> Tiling:
    if request.param == "subgroup" and choose_tiling(device) != "subgroup":
        pytest.skip(f"{device.info.name} has no use for those kernels")
    chosen: Tiling = request.param
    return chosen


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def f16(array: Array) -> Array:
    """float64 that f16 holds exactly."""
    return array.astype(np.float16).astype(np.float64)


def assert_close(got: Array, wanted: Array, tolerance: float) -> None:
    assert got.shape == wanted.shape
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, f"{error:.2e} of the largest value"


def gelu(x: Array) -> Array:
    return np.asarray(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)


def layer_norm(x: Array, gain: Array, shift: Array) -> Array:
    return np.asarray((x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * gain + shift)


def run_product(
    device: Device, tiling: Tiling, kernel: str, bindings: list[Any], params: list[int], **constants: float
) -> None:
    """Launch a product kernel over arrays and the buffer it writes, `params` starting with rows, inner, columns."""
    rows, _, columns = params[:3]
    lanes = device.subgroup_size if tiling == "subgroup" else None
    grid = (-(-columns // 8), -(-rows // 64)) if lanes is None else (-(-rows // 16), -(-columns // lanes))
    if lanes is not None and kernel == "gemm_norm":
        bindings.insert(-1, device.buffer(rows * params[1] * 16))
        grid = -(-rows // 64), 1
    buffers = [b if isinstance(b, Buffer) else device.buffer(b) for b in bindings]
    recording = Recording(device)
    pipeline = device.pipeline(f"{kernel}_{tiling}", constants, lanes=lanes)
    recording.dispatch(pipeline, [*buffers, device.buffer(np.array(params, np.uint32), uniform=True)], *grid)
    device.submit(recording)


@pytest.mark.parametrize(("rows", "inner", "columns"), SIZES)
@pytest.mark.parametrize("act", [False, True])
def test_product(device: Device, tiling: Tiling, rows: int, inner: int, columns: int, act: bool) -> None:
    a, weight = f16(random(0, rows, inner)), f16(random(1, inner, columns) / math.sqrt(inner))
    bias = random(2, columns).astype(np.float32)
    wanted = a @ weight + bias
    out = device.buffer(rows * padded(columns) * 2)
    params = [rows, padded(inner) // 4, padded(columns) // 8, padded(inner) // 4, 0, int(act), 0, 0]
    run_product(device, tiling, "gemm", [pack(a, rows), pack(weight), pack_vector(bias), out], params)
    got = device.read(out, np.float16).reshape(rows, -1).astype(np.float64)
    assert_close(got[:, :columns], gelu(wanted) if act else wanted, F16)


@pytest.mark.parametrize(("rows", "inner", "columns"), SIZES)
@pytest.mark.parametrize("act", [False, True])
def test_product_with_residual(device: Device, tiling: Tiling, rows: int, inner: int, columns: int, act: bool) -> None:
    a, weight = f16(random(0, rows, inner)), f16(random(1, inner, columns) / math.sqrt(inner))
    bias, add = random(2, columns).astype(np.float32), random(3, rows, columns).astype(np.float32)
    wanted = a @ weight + bias
    out = device.buffer(rows * padded(columns) * 4)
    padded_add = np.pad(add, [(0, 0), (0, -columns % 8)])
    params = [rows, padded(inner) // 4, padded(columns) // 8, padded(inner) // 4, int(act)]
    bindings = [pack(a, rows), pack(weight), pack_vector(bias), padded_add, out]
    run_product(device, tiling, "gemm_residual", bindings, params)
    got = device.read(out).reshape(rows, -1)[:, :columns]
    assert_close(got, (gelu(wanted) if act else wanted) + add, F32)


def test_product_of_f32_with_residual(device: Device, tiling: Tiling) -> None:
    rows, inner, columns = 17, 240, 72
    a, weight = random(0, rows, inner).astype(np.float32), f16(random(1, inner, columns))
    add, out = random(2, rows, columns).astype(np.float32), device.buffer(rows * columns * 4)
    bindings = [a, pack(weight), np.zeros(columns, np.float32), add, out]
    params = [rows, inner // 4, columns // 8, inner // 4, 0]
    run_product(device, tiling, "gemm_residual", bindings, params, A_F32=1)
    assert_close(device.read(out).reshape(rows, -1), a.astype(np.float64) @ weight + add, F32)


@pytest.mark.parametrize(("rows", "inner", "columns"), SIZES)
@pytest.mark.parametrize("act", [False, True])
def test_product_of_layer_norm(device: Device, tiling: Tiling, rows: int, inner: int, columns: int, act: bool) -> None:
    x = (random(0, rows, inner) * 3 + 5).astype(np.float32)
    weight = f16(random(1, inner, columns) / math.sqrt(inner))
    bias, gain, shift = (random(seed, n).astype(np.float32) for seed, n in ((2, columns), (3, inner), (4, inner)))
    wanted = layer_norm(x.astype(np.float64), gain, shift) @ weight + bias
    out = device.buffer(rows * padded(columns) * 2)
    padded_x = np.pad(x, [(0, 0), (0, -inner % 8)])
    params = [rows, padded(inner) // 4, padded(columns) // 8, inner, int(act)]
    bindings = [padded_x, pack_vector(gain), pack_vector(shift), pack(weight), pack_vector(bias), out]
    run_product(device, tiling, "gemm_norm", bindings, params)
    got = device.read(out, np.float16).reshape(rows, -1)[:, :columns].astype(np.float64)
    assert_close(got, gelu(wanted) if act else wanted, F16)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 129), (50, 384)])
def test_layer_norm(device: Device, rows: int, width: int) -> None:
    x = (random(0, rows, width) * 3 + 5).astype(np.float32)
    gain, shift = random(1, width).astype(np.float32), random(2, width).astype(np.float32)
    out, out_f16 = device.buffer(rows * padded(width) * 4), device.buffer(rows * padded(width) * 2)
    params = device.buffer(np.array([padded(width) // 4, width], np.uint32), uniform=True)
    inputs = [np.pad(x, [(0, 0), (0, -width % 8)]), pack_vector(gain), pack_vector(shift)]
    recording = Recording(device)
    bindings = [*(device.buffer(array) for array in inputs), out, out_f16, params]
    recording.dispatch(device.pipeline("layer_norm"), bindings, rows)
    device.submit(recording)
    wanted = layer_norm(x.astype(np.float64), gain, shift)
    assert_close(device.read(out).reshape(rows, -1)[:, :width], wanted, F32)
    assert_close(device.read(out_f16, np.float16).reshape(rows, -1)[:, :width].astype(np.float64), wanted, F16)


@pytest.mark.parametrize(("rows", "heads", "spread"), [(1, 1, 1.0), (3, 2, 1.0), (129, 2, 1.0), (200, 1, 6.0)])
def test_attention(device: Device, tiling: Tiling, rows: int, heads: int, spread: float) -> None:
    qkv = random(0, rows, 3, heads, 64)
    qkv[:, :2] *= spread
    q, k, v = np.moveaxis(f16(qkv), 1, 0)
    scores = np.einsum("qhd,khd->hqk", q, k) / 8
    weights = np.exp(scores - scores.max(2, keepdims=True))
    wanted = np.einsum("hqk,khd->qhd", weights / weights.sum(2, keepdims=True), v)
    scale = int(np.float32(math.log2(math.e) / 8).view(np.uint32))
    params, out = (
        device.buffer(np.array([rows, heads, scale], np.uint32), uniform=True),
        device.buffer(rows * heads * 256),
    )
    lanes = device.subgroup_size if tiling == "subgroup" else None
    recording = Recording(device)
    pipeline = device.pipeline(f"attention_{tiling}", lanes=lanes)
    bindings = [device.buffer(qkv.astype(np.float16)), out, params]
    recording.dispatch(pipeline, bindings, -(-rows // (32 if lanes is None else 4 * lanes)), heads)
    device.submit(recording)
    assert_close(device.read(out).reshape(wanted.shape), wanted, F32)


@pytest.mark.parametrize("width", ["128", "256"])
def test_other_subgroup_sizes(width: str, device: Device) -> None:
    """The same tests where lavapipe's subgroups have 4 and 8 lanes; the environment decides that once a process."""
    if os.environ.get("LP_NATIVE_VECTOR_WIDTH", "512") == width:
        pytest.skip("this is the size already tested here")
    if "llvmpipe" not in device.info.name:
        pytest.skip(f"{device.info.name} is tested here, whose subgroups have one size")
    files = [__file__, "tests/test_encoder.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "subgroup and not other", *files]
    environment = os.environ | {"LP_NATIVE_VECTOR_WIDTH": width}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
