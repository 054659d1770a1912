"""The CPU target: Whisper's encoder and decoder as two graphs, f32, by the C kernels or by NumPy."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from kernels.checkpoints.load import Checkpoint
from kernels.cpu.arithmetic import Arithmetic
from kernels.cpu.cores import Cores
from kernels.cpu.decoder import DecoderContext
from kernels.cpu.encoder import EncoderContext
from kernels.cpu.native_library import Library, load_library

C = TypeVar("C")


class Graph(Generic[C]):
    """The encoder (log-mel window → audio states) or decoder (tokens → logits, or tokens chosen by rules)."""

    def __init__(self, open_context: Callable[[Mapping[int, Any]], C]) -> None:
        self._open_context = open_context

    def init_execution_context(self, peers: Mapping[int, Any]) -> C:
        """A context for one thread at a time; a decoder's finds its audio among `peers`."""
        return self._open_context(peers)


class CpuModel:
    """A model on the CPU. Contexts share the immutable weights, so each may run in its own thread."""

    def __init__(self, checkpoint: Checkpoint, library: Library | None = None, *, use_library: bool = True) -> None:
        """`library`: the C kernels to use, else the best for this processor; `use_library` False: NumPy."""
        self.dims = checkpoint.dims
        heads = checkpoint.alignment_heads
        self._cores = Cores()
        library = (library or load_library()) if use_library else None
        self.kernels = "NumPy" if library is None else library.variant
        self._arithmetic: Arithmetic | None = _arithmetic(checkpoint, self._cores, library)
        checkpoint.release_copied()
        self.encoder = Graph(lambda peers: EncoderContext(self.dims, self._open()))
        self.decoder = Graph(lambda peers: DecoderContext(self.dims, heads, self._open(), peers))

    def _open(self) -> Arithmetic:
        if self._arithmetic is None:
            raise ValueError("this model is closed")
        return self._arithmetic

    def close(self) -> None:
        """Release the weights (open contexts keep them alive) and end the threads. Idempotent."""
        self._arithmetic = None
        self._cores.close()


def _arithmetic(checkpoint: Checkpoint, cores: Cores, library: Library | None) -> Arithmetic:
    if library is not None:
        from kernels.cpu.native_kernels import NativeWhisper

        return NativeWhisper(checkpoint, cores, library)
    from kernels.cpu.numpy_kernels import NumpyWhisper  # loads OpenBLAS and limits its threads, for NumPy only

    return NumpyWhisper(checkpoint, cores)
