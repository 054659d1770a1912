"""The CPU target: Whisper's encoder and decoder as two graphs in NumPy, f32, over one copy of the weights."""

from collections.abc import Callable, Mapping
from typing import Any

from kernels.checkpoint import Checkpoint
from kernels.cpu_decoder import DecoderContext
from kernels.cpu_encoder import EncoderContext
from kernels.cpu_weights import Weights, load_weights
from kernels.numpy_ops import Cores


class EncoderGraph:
    """Log-mel window → audio states."""

    def __init__(self, open_context: Callable[[], EncoderContext]) -> None:
        self._open_context = open_context

    def init_execution_context(self, peers: Mapping[int, Any]) -> EncoderContext:
        """A context of its own for one thread at a time; it needs no peers."""
        return self._open_context()


class DecoderGraph:
    """Tokens over an encoder context's result → logits, or tokens chosen by rules."""

    def __init__(self, open_context: Callable[[Mapping[int, Any]], DecoderContext]) -> None:
        self._open_context = open_context

    def init_execution_context(self, peers: Mapping[int, Any]) -> DecoderContext:
        """A context of its own for one thread at a time, which finds its audio among `peers`."""
        return self._open_context(peers)


class CpuModel:
    """A model on the CPU. Contexts share the weights, which nothing changes, so each may run in a thread of its own."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.dims = checkpoint.dims
        self._alignment_heads = checkpoint.alignment_heads
        self._weights: Weights | None = load_weights(checkpoint)
        self._cores = Cores()
        self.encoder = EncoderGraph(lambda: EncoderContext(self.dims, self._open(), self._cores))
        self.decoder = DecoderGraph(
            lambda peers: DecoderContext(self.dims, self._alignment_heads, self._open(), self._cores, peers)
        )

    def _open(self) -> Weights:
        if self._weights is None:
            raise ValueError("this model is closed")
        return self._weights

    def close(self) -> None:
        """Lets go of the weights (contexts still open keep them alive) and ends the threads. Idempotent."""
        self._weights = None
        self._cores.close()
