"""Reads the sound's format from the header of a WAV file that comes through a pipe, and skips the header."""

from service.audio.pcm import PcmFormat
from service.errors import StartError

MAX_HEAD_BYTES = 1 << 16
PCM_TAG, EXTENSIBLE_TAG = 1, 0xFFFE
UNKNOWN_SIZES = (0, 0xFFFF_FFFF)  # written by programs that cannot seek back


class WavHead:
    """A stream of PCM that may begin with a WAV header. Raises StartError for WAV that isn't PCM."""

    def __init__(self, format: PcmFormat) -> None:
        """`format`: of a stream without a header."""
        self.format, self.is_over = format, False
        self._held: bytes | None = b""  # until the start of the samples is known
        self._n_left: int | None = None  # bytes of samples; None if unknown

    def take(self, data: bytes) -> bytes:
        """The stream's next bytes → the samples among them and among bytes held back earlier."""
        if self._held is not None:
            self._held += data
            start = self._start(self._held)
            if start is None:
                return b""
            data, self._held = self._held[start:], None
        if self._n_left is not None:
            data = data[: self._n_left]
            self._n_left -= len(data)
            self.is_over = not self._n_left
        return data

    def rest(self) -> bytes:
        """At the end of the stream: bytes held back because they looked like the beginning of a header."""
        held, self._held = self._held or b"", None
        return b"" if held.startswith(b"RIFF") else held

    def _start(self, held: bytes) -> int | None:
        """The offset of the first sample; None if it isn't known yet."""
        if not (b"RIFF".startswith(held[:4]) and (len(held) < 12 or held[8:12] == b"WAVE")):
            return 0
        at = 12
        while len(held) >= at + 8:
            name, size = held[at : at + 4], int.from_bytes(held[at + 4 : at + 8], "little")
            at += 8
            if name == b"data":
                self._n_left = None if size in UNKNOWN_SIZES else size
                return at
            if name == b"fmt " and len(held) >= at + min(size, 40):
                self.format = _format(held[at : at + min(size, 40)])
            at += size + size % 2
        if len(held) > MAX_HEAD_BYTES:
            raise StartError("The WAV head on stdin is damaged: it has no samples in its first 64 KiB.")
        return None


def _format(fmt: bytes) -> PcmFormat:
    tag, channels, rate, bits = (
        int.from_bytes(fmt[at : at + n], "little") for at, n in ((0, 2), (2, 2), (4, 4), (14, 2))
    )
    if tag == EXTENSIBLE_TAG:
        tag = int.from_bytes(fmt[24:26], "little")
    if tag != PCM_TAG or bits % 8:
        raise StartError(f"The WAV on stdin has encoding {tag} with {bits} bits; wisp listen reads integer PCM only.")
    try:
        return PcmFormat(rate, bits // 8, channels)
    except ValueError as error:
        raise StartError(str(error)) from None
