"""The last minutes of a recording that is being read, to be listened to again."""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from service.audio.log_mel import FRAMES_PER_SECOND, HOP_LENGTH, KEPT_FRAMES, Samples
from service.transcription.vad import has_speech

N_KEPT = (KEPT_FRAMES + FRAMES_PER_SECOND) * HOP_LENGTH  # samples: every recording whose frames are kept, whole
LARGEST = float(np.finfo(np.float16).max)


class Recent:
    """Keeps samples as they pass: half floats, 10 MB at most. A recording that is read again is kept from its start."""

    def __init__(self) -> None:
        self._blocks: deque[NDArray[np.float16]] = deque()
        self._start = self._end = 0  # of what is kept, in samples of the recording

    def passing(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """The same blocks, kept as they are taken."""
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
        """Whether nothing that has passed is forgotten."""
        return self._start == 0

    def samples(self, first: int = 0, last: int | None = None) -> Samples:
        """Those of the recording from `first` to `last` that are kept."""
        last = self._end if last is None else last
        start, parts = self._start, [np.empty(0, np.float16)]
        for block in self._blocks:
            parts.append(block[max(0, first - start) : max(0, last - start)])
            start += len(block)
        return np.concatenate(parts).astype(np.float32)

    def has_speech(self, first: int, last: int) -> bool:
        """Whether there is speech in the frames of 10 ms `first` to `last`."""
        return has_speech(self.samples(first * HOP_LENGTH, last * HOP_LENGTH))
