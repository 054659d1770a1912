"""Whisper's encoder on the CPU: a context is one audio window and its result."""

from typing import Any

from numpy.typing import NDArray

from kernels.checkpoints.load import Dimensions
from kernels.cpu.arithmetic import Arithmetic, Encoded
from kernels.cpu.numpy_ops import Float
from kernels.inputs import checked_mel


class EncoderContext:
    """in 0 `mel` f32 [1, n_mels, 2 · n_audio_ctx] → out 0 `audio_states` f32 [1, n_audio_ctx, n_audio_state]."""

    def __init__(self, dims: Dimensions, arithmetic: Arithmetic) -> None:
        self._dims = dims
        self._arithmetic: Arithmetic | None = arithmetic
        self._mel: Float | None = None
        self.encoded: Encoded | None = None

    def set_input(self, index: int, tensor: NDArray[Any]) -> None:
        """Sets the log-mel window. Raises ValueError for another index, dtype, shape, NaN or ∞, or after close()."""
        if self._arithmetic is None:
            raise ValueError("this encoder context is closed")
        self._mel = checked_mel(self._dims, index, tensor)

    def compute(self) -> None:
        """Encodes the window set. Raises ValueError when none is, or after close()."""
        if self._arithmetic is None:
            raise ValueError("this encoder context is closed")
        if self._mel is None:
            raise ValueError("mel is not set")
        self.encoded = self._arithmetic.encode(self._mel[0])

    def get_output(self, index: int) -> Float:
        """The audio states. Raises ValueError before the first compute or for another index."""
        if index != 0:
            raise ValueError(f"the encoder has no output {index}")
        if self.encoded is None:
            raise ValueError("nothing is computed yet")
        return self.encoded.audio_states[None]

    def close(self) -> None:
        """Lets go of the window and its result; decoders that attend it keep theirs. Idempotent."""
        self._arithmetic = self._mel = self.encoded = None
