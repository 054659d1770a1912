"""Mixes channels into one: their mean, or the loudest one if they cancel each other out.

In a stereo file with one channel inverted, as from badly wired balanced lines, the mean is silence.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

WINDOW_VALUES = 1 << 16  # samples × channels examined together: 0.7 s of stereo at 44.1 kHz
FADE_SECONDS = 0.01  # crossfade between two ways of mixing
# If one of n channels has sound, their mean is n times quieter. If it is this much quieter again, they cancel.
FAR_QUIETER = 4.0

Floats = NDArray[np.float32]


class Mixer:
    """Mixes blocks as one signal. The output depends on the sound alone, not on how it is cut into blocks."""

    def __init__(self, rate: int, channels: int) -> None:
        self._n_fade = max(1, int(rate * FADE_SECONDS))
        self._window = np.empty((max(1, WINDOW_VALUES // channels), channels), np.float32)
        self._n = 0  # filled samples of it
        self._mean = np.full(channels, 1 / channels, np.float32)
        self._weights: Floats | None = None  # of the channels, in the previous window

    def __call__(self, block: Floats) -> Iterator[Floats]:
        """(n, channels) f32 → (n,) f32, … of this block and earlier ones."""
        if block.shape[1] == 1:
            yield block[:, 0]
            return
        while len(block):
            taken = block[: len(self._window) - self._n]
            self._window[self._n : self._n + len(taken)] = taken
            self._n += len(taken)
            block = block[len(taken) :]
            if self._n == len(self._window):
                yield from self.rest()

    def rest(self) -> Iterator[Floats]:
        """The samples still waiting for a full window."""
        if self._n:
            window, self._n = self._window[: self._n], 0
            yield self._mixed(window)

    def _mixed(self, window: Floats) -> Floats:
        n, channels = window.shape
        mixed = window @ self._mean
        power = np.einsum("nc,nc->c", window, window)
        loudest = int(np.argmax(power >= power.max() / 2))  # the first of about equal ones: no needless changes
        weights = self._mean
        if np.dot(mixed, mixed) * (FAR_QUIETER * channels) ** 2 < power[loudest]:
            weights = np.eye(channels, dtype=np.float32)[loudest]
            mixed = window[:, loudest].copy()
        before, self._weights = self._weights, weights
        if before is not None and not np.array_equal(before, weights):
            n_fade = min(n, self._n_fade)
            new = np.linspace(0, 1, n_fade, dtype=np.float32)
            mixed[:n_fade] = mixed[:n_fade] * new + (window[:n_fade] @ before) * (1 - new)
        return mixed
