"""Buffer sets that decoder contexts take and return, so that the next request allocates nothing."""

import threading

from kernels.webgpu.decoder.memory import DecoderBuffers
from kernels.webgpu.decoder.program import DecoderProgram

IDLE_SEQUENCES = 16  # total capacity of the idle sets: as many as the largest set


class DecoderPool:
    """Idle buffer sets of one program. Thread-safe."""

    def __init__(self, program: DecoderProgram) -> None:
        self.program = program
        self._idle: list[DecoderBuffers] = []  # the one returned last is last
        self._closed = False
        self._lock = threading.Lock()

    def take(self, n_sequences: int) -> DecoderBuffers:
        """Buffers for at least that many sequences."""
        capacity = 1 << (n_sequences - 1).bit_length()
        with self._lock:
            for at in reversed(range(len(self._idle))):
                if self._idle[at].capacity == capacity:
                    return self._idle.pop(at)
        return self.program.buffers(capacity)

    def give(self, buffers: DecoderBuffers) -> None:
        """Keep them for the next context; free the longest idle sets if that makes too many."""
        with self._lock:
            self._idle.append(buffers)
            too_many, most = [], 0 if self._closed else IDLE_SEQUENCES
            while sum(idle.capacity for idle in self._idle) > most:
                too_many.append(self._idle.pop(0))
        for idle in too_many:
            idle.close()

    def close(self) -> None:
        """Free the idle ones. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for buffers in idle:
            buffers.close()
