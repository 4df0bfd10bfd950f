"""Small clips, written with the library that reads them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {".mp4": "mpeg4", ".mov": "mpeg4", ".avi": "mpeg4", ".mkv": "ffv1", ".webm": "vp9"}


def level_of(number: int) -> int:
    """Grey level of the frame with a number; codecs change it by a few."""
    return 20 + 7 * number


def write_clip(
    target: Path, num_frames: int = 30, rate: int = 10, size: tuple[int, int] = (64, 48), turned=0
) -> Path:
    """Writes a clip whose frames are grey, each lighter than the one before, left half black."""
    codec = "gif" if target.suffix == ".gif" else CODECS[target.suffix]
    with av.open(str(target), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if turned:
            stream.set_display_rotation(turned)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(_pixels(number, size), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    return target


def _pixels(number: int, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    pixels = np.full((height, width, 3), level_of(number), np.uint8)
    pixels[:, : width // 2] = 0
    return pixels
