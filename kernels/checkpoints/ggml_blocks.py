"""ggml's quantised types: blocks of 32 values, 4, 5 or 8 bits each, with a scale and sometimes an offset.

Source: ggml-org/ggml, `src/ggml-common.h` (block_q4_0 and those after it) and `dequantize_row_q4_0` in `ggml-quants.c`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # values
_D, _M, _HIGH, _LOW = ("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("low", "u1", 16)
LAYOUTS = {  # name → a block's layout, and the stored value of 0
    "q4_0": (np.dtype([_D, _LOW]), 8),
    "q4_1": (np.dtype([_D, _M, _LOW]), 0),
    "q5_0": (np.dtype([_D, _HIGH, _LOW]), 16),
    "q5_1": (np.dtype([_D, _M, _HIGH, _LOW]), 0),
    "q8_0": (np.dtype([_D, ("values", "i1", BLOCK)]), 0),
}


@dataclass(frozen=True)
class Blocks:
    """`blocks` of one of LAYOUTS, row after row of an array of `shape`, as in the file."""

    blocks: NDArray[Any]
    zero: int
    shape: tuple[int, ...]

    def dequantise(self) -> NDArray[np.float32]:
        """A new f32 array of `shape`: (value - zero) · d + m."""
        names = self.blocks.dtype.names or ()
        if "values" in names:
            values = self.blocks["values"]
        else:
            # Low halves of the bytes are values 0–15 of the block, high halves 16–31.
            low = self.blocks["low"]
            values = np.concatenate([low & 15, low >> 4], axis=1)
            if "high" in names:  # the fifth bit of each
                values |= np.unpackbits(self.blocks["high"], axis=1, bitorder="little") << 4
        weights = values.astype(np.float32)
        weights -= self.zero
        weights *= self.blocks["d"].astype(np.float32)[:, None]
        if "m" in names:
            weights += self.blocks["m"].astype(np.float32)[:, None]
        return weights.reshape(self.shape)
