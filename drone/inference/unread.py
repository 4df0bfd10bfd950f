"""Frames whose pixels are not needed yet, and the error for clips that are damaged."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from drone.errors import DamagedError

Unread = tuple[int, float, Callable[[], Image.Image]]
"""Number and time of a frame, and what gives its pixels, which takes as long as to decode it."""


def damaged(path: Path, how: str) -> DamagedError:
    """Returns the error for a clip of which a part cannot be read."""
    return DamagedError(
        f"{path} is damaged: {how}. To have all of its frames, copy it again from its source."
    )
