"""The inputs of Whisper's two graphs, checked alike for every target before its context changes anything."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.load import Dimensions
from kernels.rules import Float, Int, Rules

AUDIO, TOKENS, ORIGINS, RULES = range(4)
LOGITS, CHOSEN, LOG_PROBABILITIES, CROSS_ATTENTION, TOKEN_PROBABILITIES = range(5)  # outputs
_FORMS = {AUDIO: ("audio", 1), TOKENS: ("tokens", 2), ORIGINS: ("origins", 1)}  # name, rank


def checked_mel(dims: Dimensions, index: int, tensor: NDArray[Any]) -> Float:
    """The encoder's input 0, as it came. Raises ValueError for another index, type, shape, NaN or ∞."""
    shape = (1, dims.n_mels, 2 * dims.n_audio_ctx)
    if index != 0:
        raise ValueError(f"the encoder has no input {index}")
    if tensor.dtype != np.float32 or tensor.shape != shape:
        raise ValueError(f"mel must be f32 {list(shape)}, found {tensor.dtype} {list(tensor.shape)}")
    if not np.isfinite(tensor).all():
        raise ValueError("mel holds values that are not finite")
    return tensor


class DecoderInputs:
    """A decoder context's inputs: tokens and origins are for one compute, rules stay until others are set."""

    def __init__(self, dims: Dimensions, most_sequences: int) -> None:
        self._dims, self._most_sequences = dims, most_sequences
        self._tokens: Int | None = None
        self._origins: Int | None = None
        self.rules: Rules | None = None

    def set(self, index: int, tensor: NDArray[Any]) -> int | None:
        """Keep the tensor; of `audio` return the handle instead. Raises ValueError for what the model cannot take."""
        if index == RULES:
            self.rules = Rules.parse(tensor, self._dims.n_vocab)
            return None
        if index not in _FORMS:
            raise ValueError(f"the decoder has no input {index}")
        name, rank = _FORMS[index]
        if tensor.dtype != np.int32 or tensor.ndim != rank or tensor.size == 0:
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{name} must be i32 of rank {rank} and not empty, found {found}")
        if index == AUDIO:
            if len(tensor) != 1:
                raise ValueError(f"audio must be one handle, found {list(tensor.shape)}")
            return int(tensor[0])
        if len(tensor) > self._most_sequences:
            raise ValueError(f"{len(tensor)} sequences are more than {self._most_sequences}")
        if index == TOKENS:
            if int(tensor.min()) < 0 or int(tensor.max()) >= self._dims.n_vocab:
                raise ValueError(f"a token is not one of {self._dims.n_vocab}")
            self._tokens = tensor
        else:
            self._origins = tensor
        return None

    def forget(self) -> None:
        """Tokens and origins, as new audio asks for."""
        self._tokens = self._origins = None

    def take(self, n_cached: int, n_past: int) -> tuple[Int, Int | None]:
        """(n_sequences, n_new) tokens and their origins, for a cache of n_cached sequences, each of n_past tokens.

        Raises ValueError, and keeps them, where they do not fit it or the rules.
        """
        tokens, origins, rules = self._tokens, self._origins, self.rules
        if tokens is None:
            raise ValueError("tokens are not set")
        n_sequences, length = len(tokens), n_past + tokens.shape[1]
        if origins is not None:
            if len(origins) != n_sequences:
                raise ValueError(f"{len(origins)} origins for {n_sequences} sequences")
            if int(origins.min()) < 0 or int(origins.max()) >= n_cached:
                raise ValueError(f"an origin is not one of {n_cached} cached sequences")
        elif n_cached not in (0, n_sequences):
            raise ValueError(f"{n_sequences} sequences of tokens for {n_cached} cached ones, and no origins")
        if length > self._dims.n_text_ctx:
            raise ValueError(
                f"{n_past} + {tokens.shape[1]} tokens are more than the {self._dims.n_text_ctx} of the text context"
            )
        if rules is not None and rules.n_steps and length < rules.sample_begin:
            raise ValueError(f"sampling would begin at {rules.sample_begin}, after {length} tokens")
        self.forget()
        return tokens, origins
