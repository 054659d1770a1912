"""One encoder result as the decoder reads it: cross-attention keys and values of each decoder layer, reference-counted.

Each decoder layer has three buffers (or views). As everywhere in Whisper, column `c` of `n_text_state` belongs to head
`c // head_dim`.
    keys   (n_text_state / 8, n_audio_ctx, 8) i16: [c / 8, t, c % 8] is column c of `audio_states[t] @ key.weight.T`
    values (n_audio_ctx, n_text_state / 8, 8) i16: [t, c / 8, c % 8], the same of `… @ value.weight.T + bias`
        scales (2, n_text_head, n_audio_ctx) f32: [0, h, t] is the factor of head h's key integers at t, the largest of
               which is ±32767; [1, h, t] the factor of the value integers

So neighbouring invocations load neighbouring keys for q·k (t fastest) and neighbouring columns for p·v (c fastest), and
a scale multiplies a score or a weight instead of every element. A u32 holds two i16, the lower index in the low half.
As small as f16 and 8 times as exact within a head's range; f16's rounding would decide between nearly tied tokens.
Keys aren't scaled by `head_dim ** -0.5`, which is multiplied into the query. No padding.
"""

import threading
from collections.abc import Callable, Sequence

from kernels.webgpu.recording import Binding


class CrossMemory:
    """(keys, values, scales) of each decoder layer; immutable once computed.

    Every user holds it; the encoder context that computed it is the first holder. The last release() calls `free`,
    which may close the buffers or reuse them.
    """

    def __init__(self, layers: Sequence[tuple[Binding, Binding, Binding]], free: Callable[[], None]) -> None:
        self.layers = tuple(layers)
        self._free = free
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> "CrossMemory":
        """Add a holder. Raises ValueError once freed."""
        with self._lock:
            if self._holders == 0:
                raise ValueError("this encoder result has been freed")
            self._holders += 1
        return self

    def release(self) -> None:
        """Remove a holder; every hold() needs exactly one release()."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._free()
