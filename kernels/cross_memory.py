"""One encoder result as the decoder reads it: each decoder layer's cross-attention keys and values, held by readers.

One pair of buffers (or views) a decoder layer, f16 packed two a u32 (`pack2x16float`, the lower index in the low half),
read by `decoder_cross_attention_*.wgsl` as `array<vec4<u32>>`, 8 neighbouring columns an element. Column `c` of
`n_text_state` belongs to head `c // head_dim`, as everywhere in Whisper.

    keys   (n_text_state / 8, n_audio_ctx, 8): [c / 8, t, c % 8] is column c of `audio_states[t] @ key.weight.T`
    values (n_audio_ctx, n_text_state / 8, 8): [t, c / 8, c % 8], the same of `audio_states[t] @ value.weight.T + bias`

So neighbouring invocations load neighbouring keys for q·k (t fastest) and neighbouring columns for p·v (c fastest).
Keys are unscaled: `head_dim ** -0.5` is multiplied into the query. No padding: each buffer has
n_audio_ctx * n_text_state * 2 bytes.
"""

import threading
from collections.abc import Callable, Sequence

from kernels.recording import Binding


class CrossMemory:
    """(keys, values) of each decoder layer, once computed never written again.

    Whoever keeps it holds it; the encoder context that computed it is the first holder. The last release() calls
    `free`, which may close the buffers or reuse them.
    """

    def __init__(self, layers: Sequence[tuple[Binding, Binding]], free: Callable[[], None]) -> None:
        self.layers = tuple(layers)
        self._free = free
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> "CrossMemory":
        """One more holder. Raises ValueError once freed."""
        with self._lock:
            if self._holders == 0:
                raise ValueError("this encoder result has been freed")
            self._holders += 1
        return self

    def release(self) -> None:
        """One holder fewer; every hold() needs exactly one."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._free()
