"""Random arrays, and how near one has to be to another."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def assert_close(got: Array, wanted: Array, tolerance: float) -> None:
    assert got.shape == wanted.shape
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, f"{error:.2e} of the largest value"
