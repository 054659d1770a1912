"""Whisper's two graphs on every target: inputs, checked before a context changes anything, and outputs by number."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.checkpoints.load import Dimensions
from kernels.rules import Float, Int, Rules

AUDIO, TOKENS, ORIGINS, RULES = range(4)
LOGITS, CHOSEN, LOG_PROBABILITIES, CROSS_ATTENTION, TOKEN_PROBABILITIES = range(5)  # outputs
_FORMS = {AUDIO: ("audio", 1), TOKENS: ("tokens", 2), ORIGINS: ("origins", 1)}  # name, rank


class EncoderContext(ABC):
    """in 0 `mel` f32 [1, n_mels, 2 · n_audio_ctx] → out 0 `audio_states` f32 [1, n_audio_ctx, n_audio_state].

    For one thread at a time; misuse raises ValueError. A target implements the private methods.
    """

    def __init__(self, dims: Dimensions) -> None:
        self._dims = dims
        self._mel: Float | None = None
        self._is_closed = False

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        """The log-mel window. Raises ValueError for another index, type, shape, NaN or ∞, or after close()."""
        self._check_open()
        shape = (1, self._dims.n_mels, 2 * self._dims.n_audio_ctx)
        if index != 0:
            raise ValueError(f"the encoder has no input {index}")
        if tensor.dtype != np.float32 or tensor.shape != shape:
            raise ValueError(f"mel must be f32 {list(shape)}, found {tensor.dtype} {list(tensor.shape)}")
        if not np.isfinite(tensor).all():
            raise ValueError("mel holds values that are not finite")
        self._mel = tensor

    def compute(self) -> None:
        """Encode the window. Raises ValueError if none is set, or after close()."""
        self._check_open()
        if self._mel is None:
            raise ValueError("mel is not set")
        self._encode(self._mel[0])

    def get_output(self, index: int) -> Float:
        """The audio states. Raises ValueError before the first compute or for another index."""
        if index != 0:
            raise ValueError(f"the encoder has no output {index}")
        states = self._states()
        if states is None:
            raise ValueError("nothing is computed yet")
        return states

    def close(self) -> None:
        """Release the window and its result; decoders that attend to it keep theirs. Idempotent."""
        self._is_closed, self._mel = True, None
        self._release()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("this encoder context is closed")

    @abstractmethod
    def _encode(self, mel: Float) -> None:
        """Keep the result of a (n_mels, 2 · n_audio_ctx) window."""

    @abstractmethod
    def _states(self) -> Float | None:
        """The result's output 0; None if there is no result."""

    @abstractmethod
    def _release(self) -> None:
        """Release the result, if any."""


class DecoderInputs:
    """A decoder context's inputs: tokens and origins are for one compute, rules stay until replaced."""

    def __init__(self, dims: Dimensions, most_sequences: int) -> None:
        self._dims, self._most_sequences = dims, most_sequences
        self._tokens: Int | None = None
        self._origins: Int | None = None
        self.rules: Rules | None = None

    def set(self, index: int, tensor: NDArray[Any]) -> int | None:
        """Keep the tensor; for `audio`, return the handle instead. Raises ValueError for invalid input."""
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
        """Drop tokens and origins, as new audio requires."""
        self._tokens = self._origins = None

    def take(self, n_cached: int, n_past: int) -> tuple[Int, Int | None]:
        """(n_sequences, n_new) tokens and their origins, for a cache of n_cached sequences, each of n_past tokens.

        Raises ValueError, and keeps them, if they don't fit the cache or the rules.
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


class DecoderContext(ABC):
    """Sequences over one encoder result: inputs 0 `audio`, 1 `tokens`, 2 `origins`, 3 `rules`; outputs as above.

    For one thread at a time; misuse raises ValueError and changes nothing. A target implements the private methods.
    """

    def __init__(self, dims: Dimensions, most_sequences: int) -> None:
        self._dims = dims
        self._inputs = DecoderInputs(dims, most_sequences)
        self._is_closed = False
        self._computed: Int | None = None  # (n_sequences, n_new): the last compute's tokens
        self._chosen: Int | None = None
        self._log_probabilities: Float | None = None

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        """Keep an input. Raises ValueError if it is invalid, or after close()."""
        if self._is_closed:
            raise ValueError("this decoder context is closed")
        handle = self._inputs.set(index, tensor)
        if handle is not None:
            self._attend(handle)

    def get_output(self, index: int) -> NDArray[Any]:
        """Output `index`. Raises ValueError before a compute that produces it, or for an unknown index."""
        if self._computed is None:
            raise ValueError("nothing is computed yet")
        if index == LOGITS:
            return self._last_logits()
        if index in (CHOSEN, LOG_PROBABILITIES):
            result = self._chosen if index == CHOSEN else self._log_probabilities
            if result is None:
                raise ValueError("no tokens were chosen: that needs rules with n_steps of 1 or more")
            return result
        if index == CROSS_ATTENTION:
            return self._cross_attention()
        if index == TOKEN_PROBABILITIES:
            if self._inputs.rules is None:
                raise ValueError("rules are not set, so end of text is unknown")
            return self._token_probabilities(self._inputs.rules.eot)
        raise ValueError(f"the decoder has no output {index}")

    @abstractmethod
    def _attend(self, handle: int) -> None:
        """Drop all sequences and attend to that encoder context's result. Raises ValueError if it has none."""

    @abstractmethod
    def _last_logits(self) -> Float:
        """(n_sequences, n_vocab) of the last position, computed on first use."""

    @abstractmethod
    def _cross_attention(self) -> Float:
        """(n_alignment_heads, n_new, n_audio_ctx) query · key of sequence 0's new tokens, scaled, before softmax."""

    @abstractmethod
    def _token_probabilities(self, eot: int) -> Float:
        """(n_sequences, n_new): each token's probability among the ids before eot, given those before it.

        NaN for the first token, and 0 for ids from eot on, which aren't among them. Source: `timing.py`.
        """
