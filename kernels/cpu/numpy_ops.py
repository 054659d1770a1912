"""Whisper's arithmetic in NumPy, f32: for processors without C kernels, and the reference for testing all kernels."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.cores import Cores, slices

Float = NDArray[np.float32]

LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default, which Whisper uses
FEW_ROWS = 5
CACHED_VALUES = 1 << 18  # f32 values that fit into a core's second-level cache while a few rows are multiplied by them
SPLIT_FLOPS = 1 << 24  # a smaller product costs less than handing half of it to another thread

# Φ(-a) = exp(-a²/2) · (c₁t + … + c₆t⁶), t = 1 / (1 + 0.28a): the form of Abramowitz & Stegun 26.2.17, coefficients
# fitted so that a·Φ(-a) is off by at most 3.4e-9, far below f32's own rounding.
_TAIL_SCALE = 0.28
_TAIL = (0.1171089832, 0.06379158143, 0.2781819808, -0.2485174407, 0.3969896439, -0.1075547973)
_GELU_BLOCK = 1 << 14  # elements: four such f32 arrays fit into a core's second-level cache


def layer_norm(x: Float, weight: Float, bias: Float) -> Float:
    """(rows, n_state) → the same shape, each row with mean 0 and variance 1, then scaled and shifted."""
    share = np.float32(1 / x.shape[-1])
    centred: Float = np.subtract(x, np.add.reduce(x, axis=-1, keepdims=True) * share)
    variance: Float = np.einsum("ij,ij->i", centred, centred) * share
    centred *= np.reciprocal(np.sqrt(variance + np.float32(LAYER_NORM_EPSILON)))[:, None]
    centred *= weight
    centred += bias
    return centred


def gelu(x: Float) -> Float:
    """x·Φ(x), exact to f32 rounding, in place; `x` is C-contiguous of any shape and is returned.

    Written as max(x, 0) - |x|·Φ(-|x|), so that the approximated part is never larger than 0.17.
    """
    flat = x.reshape(-1)
    for part in slices(flat.size, _GELU_BLOCK):
        block = flat[part]
        magnitude = np.abs(block)
        t = magnitude * np.float32(_TAIL_SCALE)
        t += np.float32(1)
        np.reciprocal(t, out=t)
        tail = t * np.float32(_TAIL[-1])
        for coefficient in _TAIL[-2::-1]:
            tail += np.float32(coefficient)
            tail *= t
        tail *= magnitude
        np.multiply(magnitude, magnitude, out=t)
        t *= np.float32(-0.5)
        tail *= np.exp(t, out=t)
        np.maximum(block, np.float32(0), out=block)
        block -= tail
    return x


def softmax(x: Float) -> Float:
    """Softmax over the last axis, in place."""
    x -= np.maximum.reduce(x, axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= np.add.reduce(x, axis=-1, keepdims=True)
    return x


def linear(x: Float, weight: Float, bias: Float | None = None, cores: Cores | None = None) -> Float:
    """(rows, n_in) and weight [n_out, n_in] → (rows, n_out) = x · weightᵀ + bias, on all `cores` if that pays."""
    n_out, n_in = weight.shape
    y = np.empty((len(x), n_out), np.float32)

    def product(columns: slice) -> None:
        if 1 < len(x) <= FEW_ROWS:
            # BLAS packs the whole weight for a matrix of any height; for a few rows it is faster to read it row by row.
            for part in slices(columns.stop - columns.start, max(1, CACHED_VALUES // n_in)):
                some = slice(columns.start + part.start, columns.start + part.stop)
                for row, out in zip(x, y, strict=True):
                    np.matmul(weight[some], row, out=out[some])
        else:
            np.matmul(x, weight[columns].T, out=y[:, columns])

    # One row is bound by reading the weight, many rows by arithmetic; the change is at about eight rows.
    if cores is not None and max(len(x), 8) * n_out * n_in > SPLIT_FLOPS:
        cores.each(product, slices(n_out, -(-n_out // (2 * cores.count))))
    else:
        product(slice(0, n_out))
    if bias is not None:
        y += bias
    return y


def conv_windows(x: Float, stride: int) -> Float:
    """(n_frames, n_in) → (⌈n_frames / stride⌉, 3 · n_in): the three frames under the kernel at each position.

    Padding is 1.
    """
    n_frames, n_in = x.shape
    n_out = (n_frames - 1) // stride + 1
    windows = np.zeros((n_out, 3, n_in), np.float32)
    for tap in range(3):
        first = 1 if tap == 0 else 0  # output frame 0 starts one frame before the input: that frame is zeros
        source = x[first * stride + tap - 1 :: stride][: n_out - first]
        windows[first : first + len(source), tap] = source
    return windows.reshape(n_out, 3 * n_in)


def attention(q: Float, k: Float, v: Float, mask: Float | None = None) -> Float:
    """(…, n_q, d) scaled queries, (…, n_k, d) keys and values → (…, n_q, d); `mask` (n_q, n_k) adds to the scores."""
    scores: Float = np.matmul(q, k.swapaxes(-1, -2))
    if mask is not None:
        scores += mask
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = np.add.reduce(scores, axis=-1, keepdims=True)
    # Dividing the result is cheaper than dividing the scores, because d is far smaller than n_k.
    result: Float = np.matmul(scores, v)
    result /= total
    return result


def causal_mask(n_new: int, n_past: int) -> Float:
    """(n_new, n_past + n_new): 0 where a new position may look, -inf for later positions."""
    mask: Float = np.triu(np.full((n_new, n_past + n_new), -np.inf, np.float32), k=n_past + 1)
    return mask


def query_scale(n_state: int, n_head: int) -> float:
    """The scale of queries: 1 / √d, for d elements per head."""
    return 1 / math.sqrt(n_state // n_head)


def as_f32(array: NDArray[Any]) -> Float:
    """A private, C-contiguous f32 copy."""
    return np.array(array, np.float32, order="C")
