"""Weights of eight or sixteen bits: whole numbers, and a scale for each group of a row, as compressed-tensors has them.

Both targets compute with the floats that `dequantise` gives; the C kernels read a token embedding of int8 as it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 64  # weights that share a scale; an f16 for 64 bytes is 3 % more to store
LARGEST = 127
COARSE_STEP = 0.2  # of a row's root mean square
BLOCK_ROWS = 1024
LARGEST_F16 = float(np.finfo(np.float16).max)


class Packed(Protocol):
    """A tensor that is stored in less room than its floats take."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that it stands for."""
        ...

    def dequantise(self) -> NDArray[np.float32]:
        """A new f32 array of that shape."""
        ...


@dataclass(frozen=True)
class Quantised:
    """`values` i8 or i16 [n_out, …] and `scales` f16 or f32 [n_out, n_groups]: their products are the weights."""

    values: NDArray[np.signedinteger[Any]]
    scales: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """[n_out, …], as of the array that it stands for."""
        return self.values.shape

    def __getitem__(self, rows: slice) -> "Quantised":
        """Some of the rows, as views."""
        return Quantised(self.values[rows], self.scales[rows])

    def dequantise(self) -> NDArray[np.float32]:
        """A new f32 array [n_out, …]."""
        n_out, n_groups = self.scales.shape
        weights = self.values.astype(np.float32)
        groups = weights.reshape(n_out, n_groups, -1)
        groups *= self.scales[:, :, None]
        return weights


def quantise(weights: NDArray[Any]) -> Quantised:
    """The nearest of 255 equal steps for each of f16 or f32 weights [n_out, n_in]; no error is over half a step.

    Groups are of 64 weights, or a whole row where n_in is no multiple of 64.
    """
    n_out, n_in = weights.shape
    n_groups = n_in // GROUP_SIZE if n_in % GROUP_SIZE == 0 else 1
    rows = weights.astype(np.float32)
    return _stepped(rows, np.abs(rows.reshape(n_out, n_groups, -1)).max(axis=2) / LARGEST)


def quantise_coarsely(weights: NDArray[Any]) -> Quantised:
    """As `quantise`, but each row has one step, a fifth of its root mean square or more: values that compress well.

    Most values are small then, and an archive's or a registry's compression gives them few bits; a step for each group
    of 64, as fine for the same size, would err more.
    """
    rows = weights.astype(np.float32)
    steps = np.maximum(np.sqrt(np.square(rows).mean(axis=1)) * COARSE_STEP, np.abs(rows).max(axis=1) / LARGEST)
    return _stepped(rows, steps[:, None])


def _stepped(weights: NDArray[np.float32], steps: NDArray[np.float32]) -> Quantised:
    """The nearest of LARGEST equal steps to either side of 0; `steps` [n_out, n_groups]."""
    scales = steps.astype(np.float16)
    # The scale as stored, not as computed, is what the values are multiplied by; a group of zeros needs none.
    used = np.where(scales == 0, 1, scales).astype(np.float32)[:, :, None]
    groups = weights.reshape(*steps.shape, -1)
    values = np.clip(np.rint(groups / used), -LARGEST, LARGEST).astype(np.int8)
    return Quantised(values.reshape(weights.shape), scales)


def _are_too_large(weights: NDArray[np.float32]) -> bool:
    """Whether one of the weights is beyond f16."""
    return bool(max(weights.max(), -weights.min()) > LARGEST_F16)


class Dequantised(Mapping[str, NDArray[Any]]):
    """Named tensors, quantised or not, read as float arrays: each is dequantised when it is asked for, and not kept."""

    def __init__(self, stored: Mapping[str, NDArray[Any] | Packed]) -> None:
        self._stored = stored

    @property
    def is_packed(self) -> bool:
        """Whether any tensor is stored otherwise than as an array."""
        return any(not isinstance(tensor, np.ndarray) for tensor in self._stored.values())

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The tensor: a view of what is stored, or a new array, f16 where the stored values have at most eight bits.

        Rounding to f16 is 1/16 of a step of eight bits at most, and halves what a model takes in memory.
        """
        tensor = self._stored[name]
        if isinstance(tensor, np.ndarray):
            return tensor
        if not isinstance(tensor, Quantised):
            weights = tensor.dequantise()
            return weights if _are_too_large(weights) else weights.astype(np.float16)
        if tensor.values.itemsize > 1:
            return tensor.dequantise()
        # Some rows at a time: the floats of all would be four times as large as what is kept.
        halves = np.empty(tensor.shape, np.float16)
        for at in range(0, len(halves), BLOCK_ROWS):
            rows = slice(at, at + BLOCK_ROWS)
            weights = tensor[rows].dequantise()
            if _are_too_large(weights):
                return tensor.dequantise()
            halves[rows] = weights
        return halves

    def bytes_of(self, name: str) -> Quantised | None:
        """The tensor where it is stored as int8 [n_out, n_in] with one scale a row."""
        tensor = self._stored[name]
        if isinstance(tensor, Quantised) and tensor.values.dtype == np.int8 and tensor.scales.shape[1] == 1:
            return tensor
        return None

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._stored)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._stored)
