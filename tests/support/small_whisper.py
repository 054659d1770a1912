"""A small random Whisper, and the few calls that drive a decoder context, for the tests of the CPU target."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.common import expected_shapes
from kernels.checkpoints.load import Checkpoint, Dimensions
from kernels.cpu.decoder import DecoderContext

DIMS = Dimensions(5, 140, 24, 3, 2, 60, 30, 24, 2, 2)
HEADS = ((0, 1), (1, 0), (1, 1))
EOT, T0, NO_TIMESTAMPS = 40, 45, 44
AUDIO = np.array([7], np.int32)


def ints(*values: Any) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def rules(n_steps: int, sample_begin: int = 1, *, timestamps: bool = True) -> NDArray[np.int32]:
    begin = T0 if timestamps else -1
    return ints(n_steps, sample_begin, EOT, begin, NO_TIMESTAMPS, 5, 3, 2, 1, 2, 41, 3, EOT)


def random_checkpoint(dims: Dimensions = DIMS) -> Checkpoint:
    """A small Whisper that says something: random, and large enough that its choices are not near-ties."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for name, shape in expected_shapes(dims).items():
        spread = 1.0 if "embedding" in name else 2 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.3
        arrays[name] = (rng.standard_normal(shape) * spread).astype(np.float16)
        if name.endswith("weight") and len(shape) == 1:
            arrays[name] += np.float16(1)
    return Checkpoint(dims, arrays, "{}", HEADS, False)


CHECKPOINT = random_checkpoint()


def append(context: DecoderContext, tokens: Any, origins: Any = None) -> NDArray[Any]:
    """Appends tokens and returns the logits after them."""
    if origins is not None:
        context.set_input(2, np.array(origins, np.int32))
    context.set_input(1, np.array(tokens, np.int32))
    context.compute()
    return context.get_output(0)


def close_to(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
