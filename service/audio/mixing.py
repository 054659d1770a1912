"""Several channels → one: their mean, but the loudest of them where they cancel each other out.

A stereo file with one channel inverted, as badly wired balanced lines give, is silence in the mean.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

WINDOW_VALUES = 1 << 16  # samples × channels that are looked at together: 0.7 s of stereo at 44.1 kHz
FADE_SECONDS = 0.01  # from one way of mixing to the other
# The mean of n channels of which one has sound is n times quieter than it. This much quieter again: they cancel.
FAR_QUIETER = 4.0

Floats = NDArray[np.float32]


class Mixer:
    """Mixes blocks as one signal. What comes out depends on the sound alone, not on how it is cut into blocks."""

    def __init__(self, rate: int, channels: int) -> None:
        self._n_fade = max(1, int(rate * FADE_SECONDS))
        self._window = np.empty((max(1, WINDOW_VALUES // channels), channels), np.float32)
        self._n = 0  # of its samples are filled
        self._mean = np.full(channels, 1 / channels, np.float32)
        self._weights: Floats | None = None  # of the channels, in the window before

    def __call__(self, block: Floats) -> Iterator[Floats]:
        """(n, channels) f32 → (n,) f32, … of this block and those before."""
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
        """What still waits for a full window."""
        if self._n:
            window, self._n = self._window[: self._n], 0
            yield self._mixed(window)

    def _mixed(self, window: Floats) -> Floats:
        n, channels = window.shape
        mixed = window @ self._mean
        power = np.einsum("nc,nc->c", window, window)
        loudest = int(np.argmax(power >= power.max() / 2))  # the first that is about as loud: no change for a trifle
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
