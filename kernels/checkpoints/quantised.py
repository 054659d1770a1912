"""Weights of eight or sixteen bits: integers with a scale for each group of a row, as in compressed-tensors.

Both targets compute with the floats that `dequantise` returns; the C kernels read an int8 token embedding directly.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 64  # weights that share a scale; an f16 per 64 bytes adds 3 %
LARGEST = 127
COARSE_STEP = 0.2  # of a row's root mean square
BLOCK_ROWS = 1024
LARGEST_F16 = float(np.finfo(np.float16).max)


class Packed(Protocol):
    """A tensor stored in less space than its floats take."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that it represents."""
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
        """[n_out, …], the shape of the array that it represents."""
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
    """Rounds f16 or f32 weights [n_out, n_in] to the nearest of 255 equal steps; no error exceeds half a step.

    A group is 64 weights, or a whole row if n_in isn't a multiple of 64.
    """
    n_out, n_in = weights.shape
    n_groups = n_in // GROUP_SIZE if n_in % GROUP_SIZE == 0 else 1
    rows = weights.astype(np.float32)
    return _stepped(rows, np.abs(rows.reshape(n_out, n_groups, -1)).max(axis=2) / LARGEST)


def quantise_coarsely(weights: NDArray[Any]) -> Quantised:
    """Like `quantise`, but each row has one step, at least a fifth of its root mean square: the values compress well.

    Most values are then small, and an archive's or a registry's compression stores them in few bits. A step for each
    group of 64 with the same compressed size would be less accurate.
    """
    rows = weights.astype(np.float32)
    steps = np.maximum(np.sqrt(np.square(rows).mean(axis=1)) * COARSE_STEP, np.abs(rows).max(axis=1) / LARGEST)
    return _stepped(rows, steps[:, None])


def _stepped(weights: NDArray[np.float32], steps: NDArray[np.float32]) -> Quantised:
    """Rounds to the nearest of LARGEST equal steps on either side of 0; `steps` [n_out, n_groups]."""
    scales = steps.astype(np.float16)
    # Values are later multiplied by the scale as stored, not as computed; a group of zeros needs none.
    used = np.where(scales == 0, 1, scales).astype(np.float32)[:, :, None]
    groups = weights.reshape(*steps.shape, -1)
    values = np.clip(np.rint(groups / used), -LARGEST, LARGEST).astype(np.int8)
    return Quantised(values.reshape(weights.shape), scales)


def _are_too_large(weights: NDArray[np.float32]) -> bool:
    """Whether any weight exceeds f16's range."""
    return bool(max(weights.max(), -weights.min()) > LARGEST_F16)


class Dequantised(Mapping[str, NDArray[Any]]):
    """Named tensors, quantised or not, read as float arrays: each is dequantised at every access, and not kept."""

    def __init__(self, stored: Mapping[str, NDArray[Any] | Packed]) -> None:
        self._stored = stored

    @property
    def is_packed(self) -> bool:
        """Whether any tensor isn't stored as a plain array."""
        return any(not isinstance(tensor, np.ndarray) for tensor in self._stored.values())

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The tensor: a view of the stored array, or a new one, f16 if the stored values have at most eight bits.

        Rounding to f16 changes a weight by 1/16 of an eight-bit step at most, and halves a model's memory.
        """
        tensor = self._stored[name]
        if isinstance(tensor, np.ndarray):
            return tensor
        if not isinstance(tensor, Quantised):
            weights = tensor.dequantise()
            return weights if _are_too_large(weights) else weights.astype(np.float16)
        if tensor.values.itemsize > 1:
            return tensor.dequantise()
        # A block of rows at a time: the f32 values of all would take four times the stored size.
        halves = np.empty(tensor.shape, np.float16)
        for at in range(0, len(halves), BLOCK_ROWS):
            rows = slice(at, at + BLOCK_ROWS)
            weights = tensor[rows].dequantise()
            if _are_too_large(weights):
                return tensor.dequantise()
            halves[rows] = weights
        return halves

    def bytes_of(self, name: str) -> Quantised | None:
        """The tensor if it is stored as int8 [n_out, n_in] with one scale per row, else None."""
        tensor = self._stored[name]
        if isinstance(tensor, Quantised) and tensor.values.dtype == np.int8 and tensor.scales.shape[1] == 1:
            return tensor
        return None

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._stored)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._stored)
