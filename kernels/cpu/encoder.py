"""Whisper's encoder on the CPU: a context is one audio window and its result."""

from kernels import inputs
from kernels.checkpoints.load import Dimensions
from kernels.cpu.arithmetic import Arithmetic, Encoded
from kernels.cpu.numpy_ops import Float


class EncoderContext(inputs.EncoderContext):
    """`encoded` is the result of the last compute."""

    def __init__(self, dims: Dimensions, arithmetic: Arithmetic) -> None:
        super().__init__(dims)
        self._arithmetic: Arithmetic | None = arithmetic
        self.encoded: Encoded | None = None

    def _encode(self, mel: Float) -> None:
        assert self._arithmetic is not None
        self.encoded = self._arithmetic.encode(mel)

    def _states(self) -> Float | None:
        return None if self.encoded is None else self.encoded.audio_states[None]

    def _release(self) -> None:
        self._arithmetic = self.encoded = None
