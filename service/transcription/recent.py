"""Keeps the last minutes of a recording while it is read, to check them for speech."""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from service.audio.log_mel import FRAMES_PER_SECOND, HOP_LENGTH, KEPT_FRAMES, Samples
from service.transcription.vad import has_speech

N_KEPT = (KEPT_FRAMES + FRAMES_PER_SECOND) * HOP_LENGTH  # samples: all of every recording whose frames are kept
LARGEST = float(np.finfo(np.float16).max)


class Recent:
    """Keeps passing samples as half floats, at most 10 MB. A recording that is read again is kept from its start."""

    def __init__(self) -> None:
        self._blocks: deque[NDArray[np.float16]] = deque()
        self._start = self._end = 0  # of the kept part, in samples of the recording

    def passing(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """The same blocks, kept as they pass."""
        self._blocks.clear()
        self._start = self._end = 0
        for block in blocks:
            self._blocks.append(np.clip(block, -LARGEST, LARGEST).astype(np.float16))
            self._end += len(block)
            while self._end - self._start - len(self._blocks[0]) >= N_KEPT:
                self._start += len(self._blocks.popleft())
            yield block

    @property
    def is_whole(self) -> bool:
        """Whether no sample has been dropped."""
        return self._start == 0

    def samples(self, first: int = 0, last: int | None = None) -> Samples:
        """The recording's samples from `first` to `last`, as far as they are kept."""
        last = self._end if last is None else last
        start, parts = self._start, [np.empty(0, np.float16)]
        for block in self._blocks:
            parts.append(block[max(0, first - start) : max(0, last - start)])
            start += len(block)
        return np.concatenate(parts).astype(np.float32)

    def has_speech(self, first: int, last: int) -> bool:
        """Whether the 10 ms frames `first` to `last` contain speech."""
        return has_speech(self.samples(first * HOP_LENGTH, last * HOP_LENGTH))
