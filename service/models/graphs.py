"""The model's graphs that are not networks: tokenizer, zlib, voice-activity detection, and PCM → text for other guests.

They follow the protocols of service/guest/wasi_nn.py without importing it: ValueError is a guest's mistake, anything
else is a fault.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.models.tokenizer import Tokenizer

Tensor = NDArray[Any]


class FunctionContext:
    """An execution context with one input and one output that is a function of it."""

    def __init__(self, check: Callable[[Tensor], None], function: Callable[[Tensor], Tensor]) -> None:
        self._check, self._function = check, function
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def set_input(self, index: int, tensor: Tensor) -> None:
        """Keep input 0. Raises ValueError for another index, or for a shape or dtype that the graph rejects."""
        if index != 0:
            raise ValueError(f"only input 0 exists, not {index}")
        self._check(tensor)
        self._input = tensor

    def compute(self) -> None:
        """Compute the output of the latest input. Raises ValueError without one."""
        if self._input is None:
            raise ValueError("input 0 is not set")
        self._output = None
        self._output = self._function(self._input)

    def get_output(self, index: int) -> Tensor:
        """Output 0 of the latest compute. Raises ValueError before the first, or for another index."""
        if index != 0 or self._output is None:
            raise ValueError(f"output {index} does not exist" if index else "nothing is computed yet")
        return self._output

    def close(self) -> None:
        """Forget input and output; idempotent."""
        self._input = self._output = None


class TokenizerGraph:
    """NAME/tokenizer: i32 [n] ids → u8 [m] UTF-8, or the reverse, without special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def init_execution_context(self, peers: Mapping[int, Any]) -> FunctionContext:
        return FunctionContext(self._check, self._convert)

    @staticmethod
    def _check(tensor: Tensor) -> None:
        if tensor.ndim != 1 or tensor.dtype not in (np.int32, np.uint8):
            raise ValueError(f"expected i32 or u8 of one dimension, got {tensor.dtype} {tensor.shape}")

    def _convert(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == np.int32:
            return _utf8(self._tokenizer.decode(tensor.tolist()))
        return np.array(self._tokenizer.encode(tensor.tobytes().decode("utf-8", "replace")), np.int32)


class ZlibGraph:
    """NAME/zlib: u8 [n] → i32 [1], the bytes that zlib makes of them; openai/whisper's compression ratio needs it."""

    def init_execution_context(self, peers: Mapping[int, Any]) -> FunctionContext:
        return FunctionContext(self._check, lambda tensor: np.array([len(zlib.compress(tensor))], np.int32))

    @staticmethod
    def _check(tensor: Tensor) -> None:
        if tensor.ndim != 1 or tensor.dtype != np.uint8:
            raise ValueError(f"expected u8 [n], got {tensor.dtype} {tensor.shape}")


class SpeechGraph:
    """NAME: f32 [1, n_samples] of 16 kHz mono PCM → u8 [m], the transcript in UTF-8.

    `transcribe` turns (n_samples,) into text; its ValueError means bad samples from the guest.
    """

    def __init__(self, transcribe: Callable[[NDArray[np.float32]], str]) -> None:
        self._transcribe = transcribe

    def init_execution_context(self, peers: Mapping[int, Any]) -> FunctionContext:
        return FunctionContext(self._check, lambda tensor: _utf8(self._transcribe(tensor[0])))

    @staticmethod
    def _check(tensor: Tensor) -> None:
        if tensor.ndim != 2 or tensor.shape[0] != 1 or tensor.dtype != np.float32:
            raise ValueError(f"expected f32 [1, n_samples], got {tensor.dtype} {tensor.shape}")
        if not np.isfinite(tensor).all():
            raise ValueError("a sample is not a finite number")


class VoiceGraph:
    """NAME/voice: i32 [2], the first frame of 10 ms and the one after the last → i32 [1], whether it has speech."""

    def __init__(self, has_speech: Callable[[int, int], bool]) -> None:
        self._has_speech = has_speech

    def init_execution_context(self, peers: Mapping[int, Any]) -> FunctionContext:
        return FunctionContext(self._check, lambda tensor: np.array([self._has_speech(*tensor.tolist())], np.int32))

    @staticmethod
    def _check(tensor: Tensor) -> None:
        if tensor.shape != (2,) or tensor.dtype != np.int32:
            raise ValueError(f"expected i32 [2], got {tensor.dtype} {tensor.shape}")
        if not 0 <= tensor[0] <= tensor[1]:
            raise ValueError(f"frames {tensor[0]} to {tensor[1]} do not exist")


def _utf8(text: str) -> Tensor:
    return np.frombuffer(text.encode(), np.uint8)
