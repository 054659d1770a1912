"""What hears live sound: this machine's model (local.py) or a server (remote.py)."""

from collections.abc import Callable
from typing import Protocol

from service.audio.pcm import PcmFormat

Complain = Callable[[str], None]  # about an utterance that failed; the others go on

SILENCE_MS = 500  # ends an utterance; OpenAI's default for live speech


class Ear(Protocol):
    """It reports to captions by itself. If it fails, it stops the source, and end() raises the reason."""

    async def hear(self, format: PcmFormat, data: bytes) -> None:
        """The next piece of sound; waits while much of it has not been heard."""

    async def end(self) -> None:
        """No more sound comes: returns once all of it is transcribed. Raises WispError, OSError."""
