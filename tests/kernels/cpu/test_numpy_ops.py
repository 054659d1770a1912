"""The CPU target's arithmetic against float64, over odd sizes, and its division of work."""

import math
import threading

import numpy as np
import pytest

from kernels.cpu.cores import Cores, slices
from kernels.cpu.numpy_ops import (
    SPLIT_FLOPS,
    Float,
    attention,
    causal_mask,
    conv_windows,
    gelu,
    layer_norm,
    linear,
    query_scale,
    softmax,
)

SIZES = [(1, 1), (3, 129), (150, 384)]
rng = np.random.default_rng(0)


def normal(*shape: int) -> Float:
    return rng.standard_normal(shape, dtype=np.float32)


def test_gelu_is_exact_to_rounding() -> None:
    x = np.concatenate([np.linspace(-12, 12, 20_001), [0, -0.0, 1e-30, -1e-30, 1e4, -1e4]]).astype(np.float32)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    y = gelu(x.copy())
    np.testing.assert_allclose(y, exact, rtol=2e-7, atol=1e-7)
    wide = normal(7, 5000)
    assert gelu(wide) is wide  # in place


@pytest.mark.parametrize("shape", SIZES)
def test_layer_norm(shape: tuple[int, int]) -> None:
    x, weight, bias = 3 * normal(*shape) + 5, normal(shape[1]), normal(shape[1])
    wide = x.astype(float)
    centred = wide - wide.mean(-1, keepdims=True)
    exact = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(layer_norm(x, weight, bias), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("n_out", [1, 5, 1152])
@pytest.mark.parametrize("shape", SIZES)
def test_linear(shape: tuple[int, int], n_out: int) -> None:
    x, weight, bias = normal(*shape), normal(n_out, shape[1]), normal(n_out)
    exact = x.astype(float) @ weight.astype(float).T + bias
    np.testing.assert_allclose(linear(x, weight, bias), exact, rtol=2e-5, atol=2e-5 * shape[1] ** 0.5)


@pytest.mark.parametrize("rows", [1, 2, 5, 300])
def test_linear_over_cores_is_the_same(rows: int) -> None:
    cores = Cores()
    x, weight = normal(rows, 128), normal(SPLIT_FLOPS // 128 // 8 + 77, 128)
    np.testing.assert_allclose(linear(x, weight, None, cores), linear(x, weight), rtol=1e-5, atol=1e-4)
    cores.close()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("n_frames", [1, 2, 7, 30])
def test_conv_windows_make_a_convolution_a_product(n_frames: int, stride: int) -> None:
    x, weight, bias = normal(n_frames, 5), normal(3, 3, 5), normal(3)
    padded = np.pad(x.astype(float), ((1, 1), (0, 0)))
    exact = np.stack(
        [
            sum(padded[at + tap] @ weight[:, tap].astype(float).T for tap in range(3)) + bias
            for at in range(0, n_frames, stride)
        ]
    )
    np.testing.assert_allclose(
        linear(conv_windows(x, stride), weight.reshape(3, 15), bias), exact, rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("n_past", [0, 4])
@pytest.mark.parametrize("n_new", [1, 3])
def test_attention_looks_back_only(n_new: int, n_past: int) -> None:
    q, k, v = normal(2, n_new, 8), normal(2, n_past + n_new, 8), normal(2, n_past + n_new, 8)
    result = attention(q, k, v, causal_mask(n_new, n_past))
    for head in range(2):
        for row in range(n_new):
            seen = slice(n_past + row + 1)
            weights = np.exp(k[head, seen].astype(float) @ q[head, row])
            np.testing.assert_allclose(result[head, row], weights @ v[head, seen] / weights.sum(), rtol=2e-5, atol=2e-5)


def test_attention_and_softmax_do_not_overflow() -> None:
    huge = np.array([[1000, 999, -1000]], np.float32)
    np.testing.assert_allclose(softmax(huge.copy())[0], [0.7310586, 0.2689414, 0], rtol=1e-6)
    np.testing.assert_allclose(attention(huge, np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)), softmax(huge))


def test_query_scale_is_exact_for_whisper() -> None:
    assert query_scale(384, 6) == query_scale(1280, 20) == 0.125


def test_slices_cover_everything_once() -> None:
    assert slices(0, 3) == []
    assert [(part.start, part.stop) for part in slices(7, 3)] == [(0, 3), (3, 6), (6, 7)]


def test_cores_do_every_piece_and_raise_what_one_raised() -> None:
    cores = Cores()
    done: list[int] = []
    cores.each(done.append, range(100))
    assert sorted(done) == list(range(100))

    def fail(item: int) -> None:
        if item == 50:
            raise ArithmeticError("fifty")

    with pytest.raises(ArithmeticError, match="fifty"):
        cores.each(fail, range(100))
    cores.close()
    cores.close()


def test_cores_serve_several_threads_at_once() -> None:
    cores = Cores()
    sums = [0] * 4

    def work(index: int) -> None:
        total: list[int] = []
        for _ in range(50):
            cores.each(total.append, range(20))
        sums[index] = sum(total)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [50 * 190] * 4
    cores.close()
