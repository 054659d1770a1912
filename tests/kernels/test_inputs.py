"""The inputs of both graphs: what a target never gets to see, and when a decoder's are used up."""

from typing import Any

import numpy as np
import pytest

from kernels.inputs import AUDIO, ORIGINS, RULES, TOKENS, DecoderInputs
from tests.support.small_whisper import DIMS, ints, rules


@pytest.mark.parametrize(
    ("index", "tensor", "message"),
    [
        (4, ints(0), "no input 4"),
        (-1, ints(0), "no input -1"),
        (1, np.zeros((1, 1), np.int64), "tokens must be i32"),
        (1, np.zeros((1, 1), np.float32), "tokens must be i32"),
        (1, ints(1, 2), "tokens must be i32 of rank 2"),
        (1, np.zeros((0, 1), np.int32), "not empty"),
        (1, np.zeros((1, 0), np.int32), "not empty"),
        (1, ints([-1]), "not one of 60"),
        (1, ints([60]), "not one of 60"),
        (1, np.zeros((17, 1), np.int32), "sequences"),
        (2, ints([0]), "origins must be i32 of rank 1"),
        (2, np.zeros(1, np.uint8), "origins must be i32"),
        (0, ints(7, 7), "one handle"),
        (0, np.zeros(1, np.float32), "audio must be i32"),
        (3, ints(1, 2, 3), "rules must be i32"),
    ],
)
def test_a_tensor_that_the_decoder_cannot_take(index: int, tensor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderInputs(DIMS, 16).set(index, tensor)


def given(tokens: Any, origins: Any = None) -> DecoderInputs:
    inputs = DecoderInputs(DIMS, 16)
    inputs.set(RULES, rules(1, 2))
    inputs.set(TOKENS, ints(*tokens))
    if origins is not None:
        inputs.set(ORIGINS, ints(*origins))
    return inputs


@pytest.mark.parametrize(
    ("tokens", "origins", "n_cached", "n_past", "message"),
    [
        ([[1], [2]], None, 1, 2, "2 sequences of tokens for 1 cached ones, and no origins"),
        ([[1]], [0, 0], 1, 2, "2 origins for 1"),
        ([[1]], [1], 1, 2, "an origin is not one of 1"),
        ([[1]], [-1], 1, 2, "an origin is not one of 1"),
        ([[1]], [0], 0, 0, "an origin is not one of 0"),
        ([[1, 2]], None, 1, 29, r"29 \+ 2 tokens are more than the 30 of the text context"),
        ([[1]], None, 0, 0, "sampling would begin at 2, after 1 tokens"),
    ],
)
def test_tokens_that_do_not_fit_the_cache(tokens: Any, origins: Any, n_cached: int, n_past: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        given(tokens, origins).take(n_cached, n_past)


def test_tokens_and_origins_are_for_one_compute_and_rules_stay() -> None:
    inputs = given([[3], [4]], [1, 1])
    tokens, origins = inputs.take(2, 5)
    assert tokens.tolist() == [[3], [4]] and origins is not None and origins.tolist() == [1, 1]
    with pytest.raises(ValueError, match="tokens are not set"):
        inputs.take(2, 6)
    inputs.set(TOKENS, ints([5], [6]))
    assert inputs.take(2, 6)[1] is None and inputs.rules is not None
    assert inputs.set(AUDIO, ints(7)) == 7
