"""Sound as PyAV writes it."""

import io
from typing import Any

import av
import numpy as np

from tests.support.sounds import speechlike


def encoded(
    container: str,
    codec: str,
    rate: int = 44_100,
    layout: str = "stereo",
    seconds: float = 2,
    video: bool = False,
    picture_codec: str = "mpeg4",
) -> bytes:
    """The chirp of speechlike() as PyAV writes it, next to a black picture if `video`."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        picture: Any = out.add_stream(picture_codec, rate=10) if video else None
        track: Any = out.add_stream(codec, rate=rate) if codec else None  # before any packet
        if codec:
            track.layout = layout
        if video:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
            for turn in range(round(seconds * 10)):
                black = av.VideoFrame.from_ndarray(np.zeros((72, 64), np.uint8), "yuv420p")
                black.pts = turn
                out.mux(picture.encode(black))
            out.mux(picture.encode(None))
        if codec:
            fit = av.AudioResampler(track.codec_context.format, layout, rate)
            sound = speechlike(rate, track.codec_context.layout.nb_channels, seconds).astype(np.float32)
            for start in range(0, len(sound), 1024):
                frame = av.AudioFrame.from_ndarray(sound[start : start + 1024].reshape(1, -1), "flt", layout)
                frame.sample_rate, frame.pts = rate, start
                for fitted in fit.resample(frame):
                    out.mux(track.encode(fitted))
            out.mux(track.encode(None))
    return file.getvalue()
