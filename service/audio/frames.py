"""Decoded frames: their samples as bytes, and whether they are more than silence. NumPy is not needed here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

AUDIBLE = 0.003  # of full scale (-50 dB); a lower peak is silence, or the noise of an input with nothing plugged in
_STEP = 16  # one sample in 16 is enough to find the peak of sound
_Code = Literal["B", "h", "i", "q", "f", "d"]
# sample format, without the "p" of planar ones → its code in memoryview and NumPy, bytes, silence, full scale
FORMATS: dict[str, tuple[_Code, int, int, int]] = {
    "u8": ("B", 1, 128, 1 << 7),
    "s16": ("h", 2, 0, 1 << 15),
    "s32": ("i", 4, 0, 1 << 31),
    "s64": ("q", 8, 0, 1 << 63),
    "flt": ("f", 4, 0, 1),
    "dbl": ("d", 8, 0, 1),
}


def planes(frame: "AudioFrame") -> list[bytes]:
    """The samples of each channel, or of all channels together if the format isn't planar."""
    channels = frame.layout.nb_channels
    size = frame.samples * FORMATS[frame.format.name.removesuffix("p")][1]
    views: tuple[Any, ...] = frame.planes  # buffers, which their type does not say
    if frame.format.is_planar:
        return [bytes(memoryview(views[channel])[:size]) for channel in range(channels)]
    return [bytes(memoryview(views[0])[: size * channels])]


def is_audible(frame: "AudioFrame") -> bool:
    """Whether one of its samples is louder than silence."""
    code, _, silence, full_scale = FORMATS[frame.format.name.removesuffix("p")]
    for plane in planes(frame):
        if plane.strip(b"\0"):
            values: Sequence[float] = memoryview(plane).cast(code)[::_STEP].tolist()
            if max(max(values) - silence, silence - min(values)) >= AUDIBLE * full_scale:
                return True
    return False
