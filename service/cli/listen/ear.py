"""Transcribes live sound: with this machine's model (local.py) or by a server (remote.py)."""

from collections.abc import Callable
from typing import Protocol

from service.audio.pcm import PcmFormat

Complain = Callable[[str], None]  # reports an utterance that failed; the others continue


class Ear(Protocol):
    """Writes captions. If it fails, it stops the source, and end() raises the reason."""

    async def hear(self, format: PcmFormat, data: bytes) -> None:
        """Take the next piece of sound; wait while much of it is pending."""

    async def end(self) -> None:
        """End the sound, and wait until all of it is transcribed. Raises WispError, OSError."""
