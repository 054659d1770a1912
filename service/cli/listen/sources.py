"""Sources of live sound: a microphone, or PCM on stdin. Bytes come in pieces, each with its format."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Protocol

from service.audio.pcm import PcmFormat
from service.cli.listen.wav_head import WavHead
from service.errors import StartError

READ_BYTES = 1 << 15  # a second of 16 kHz
AHEAD = 4  # pieces of stdin that are read in advance
MICROPHONE_BLOCK_S = 0.1
HINT = "Or pipe sound in: arecord -f S16_LE -r 16000 -t raw | wisp listen -"

Piece = tuple[PcmFormat, bytes]


class Source(Protocol):
    """Records sound from its creation on."""

    def pieces(self) -> AsyncIterator[Piece]:
        """The sound's pieces, until it ends or stop() ends it. Raises StartError if it fails."""

    def stop(self) -> None:
        """End after the sound recorded so far. Idempotent."""


class Stdin:
    """PCM in the given format, or in that of its WAV header. Read no faster than it is used."""

    def __init__(self, format: PcmFormat, *, descriptor: int = 0) -> None:
        self._head, self._descriptor = WavHead(format), descriptor
        self._pieces: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._loop = asyncio.get_running_loop()
        # A daemon, because a read that waits for data can't be interrupted.
        threading.Thread(target=self._read, name="wisp-stdin", daemon=True).start()

    def _read(self) -> None:
        data: bytes | Exception = b""
        while True:
            self._room.acquire()
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except OSError as error:
                data = StartError(f"stdin cannot be read: {error.strerror}.")
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, data)
            if not isinstance(data, bytes) or not data:
                return

    def stop(self) -> None:
        """See Source."""
        self._pieces.put_nowait(b"")

    async def pieces(self) -> AsyncIterator[Piece]:
        """See Source."""
        while True:
            data = await self._pieces.get()
            self._room.release()
            if isinstance(data, Exception):
                raise data
            samples = self._head.take(data) if data else self._head.rest()
            if samples:
                yield self._head.format, samples
            if not data or self._head.is_over:
                return


class Microphone:
    """An input device, recorded at its own rate."""

    def __init__(self, device: str | None = None) -> None:
        """`device`: its number or a part of its name; None is the system's default. Raises StartError."""
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        library = _sounddevice()
        loop, put = asyncio.get_running_loop(), self._pieces.put_nowait

        def heard(data: Any, *_: object) -> None:  # in the library's thread
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(put, bytes(data))

        chosen = int(device) if device is not None and device.isdecimal() else device
        try:
            described = library.query_devices(chosen, "input")
            rate = round(described["default_samplerate"])
            self._stream = library.RawInputStream(
                samplerate=rate,
                blocksize=round(rate * MICROPHONE_BLOCK_S),
                device=chosen,
                channels=1,
                dtype="int16",
                callback=heard,
            )
            self._stream.start()
        except (library.PortAudioError, ValueError) as error:
            raise StartError(_no_device(library, device, error)) from None
        self._format, self.name = PcmFormat(rate), str(described["name"])

    def stop(self) -> None:
        """See Source."""
        self._stream.close()
        self._pieces.put_nowait(b"")

    async def pieces(self) -> AsyncIterator[Piece]:
        """See Source."""
        while data := await self._pieces.get():
            yield self._format, data


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise StartError(f"The microphone needs the extra [mic]: pip install 'wisp[mic]'. {HINT}") from None
    except OSError:
        raise StartError(
            f"The microphone needs the system's PortAudio, such as Debian's libportaudio2. {HINT}"
        ) from None
    return sounddevice


def _no_device(library: Any, device: str | None, error: Exception) -> str:
    try:
        found = [f"{one['index']} ({one['name']})" for one in library.query_devices() if one["max_input_channels"]]
    except library.PortAudioError:
        found = []
    if not found:
        return f"This machine has no microphone. {HINT}"
    what = "The default microphone" if device is None else f"The microphone '{device}'"
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else "no reason given"
    return f"{what} cannot be opened: {reason}. --device takes one of: {', '.join(found)}."
