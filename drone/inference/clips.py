"""Frames of video clips and animated GIFs, one at a time; folders of numbered images."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from drone.errors import ImageError
from drone.inference.unread import damaged
from drone.serving.metadata import DECODE_ERRORS
from drone.serving.preprocess import Preprocessing

CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
"""Suffixes that make a clip of a file whose content tells nothing, such as a damaged one."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")

_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""Brands of the MP4 container that are images: AVIF and HEIC."""

_NUMBERED = re.compile(r"(.*?)(\d+)\.\w+", re.DOTALL)

FRAMES_PER_S = 25.0
"""Frames per second of numbered images, which have no times."""

_CLOCK_S = 1e-3
"""Tolerance in seconds of times, which are rounded to the clip's clock."""


@dataclass(frozen=True)
class Frame:
    """One frame of a clip."""

    number: int
    """Position of the frame in the clip, from 0."""

    time_s: float
    """Seconds since the first frame."""

    image: Image.Image
    """The frame as shown: RGB, rotated as the clip says."""


def is_clip(path: Path) -> bool:
    """Whether a file is a video clip or an animated GIF.

    The content decides, whatever the file is called. If the content is none that is known, as in a
    damaged file, the suffix does, so that `frames` can say what is wrong.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(16)
    if head.startswith(b"GIF8"):
        return _is_animated(path)
    if head[4:8] == b"ftyp":
        return head[8:12] not in _IMAGE_BRANDS
    if head.startswith(b"\x1a\x45\xdf\xa3") or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    return path.suffix.lower() in CLIP_SUFFIXES


def numbered_images(folder: Path) -> dict[int, Path]:
    """Returns the images of a folder by number if they are the frames of one clip, else nothing.

    They are if all of them have the same name but for the number at its end, and no number twice:
    `frame_0001.jpg`, `frame_0002.jpg`. Numbers may be missing.

    Raises:
        OSError: The folder cannot be read.
    """
    images = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES]
    matches = [_NUMBERED.fullmatch(path.name) for path in images]
    names = {match[1] if match else None for match in matches}
    if len(images) < 2 or len(names) > 1 or None in names:
        return {}
    by_number = {int(match[2]): path for match, path in zip(matches, images, strict=True) if match}
    return dict(sorted(by_number.items())) if len(by_number) == len(images) else {}


def frames(
    path: Path,
    every_s: float = 0.0,
    numbers: Collection[int] | None = None,
    settings: Preprocessing | None = None,
) -> Iterator[Frame]:
    """Yields frames of a clip; memory does not grow with its length.

    A damaged clip yields the frames that can be read, and then raises.

    Args:
        path: The clip.
        every_s: Seconds from one frame to the next, of which the first in time is taken; 0 for all.
        numbers: Only frames with these numbers, such as those that have boxes.
        settings: Their limits on the size of images hold for frames too.

    Raises:
        DataError: It is no clip, or no frame of it can be read.
        DamagedError: A part of the clip cannot be read. Its frames before and after were yielded.
    """
    # Imported here: FFmpeg takes a while that images need not wait for.
    from drone.inference.video import clip_frames

    due_s, num_damaged = 0.0, 0
    for number, time_s, load in clip_frames(path, settings or Preprocessing()):
        if time_s < due_s or (numbers is not None and number not in numbers):
            continue
        try:
            image = load()
        except (ImageError, OSError):
            num_damaged += 1
            continue
        yield Frame(number, time_s, image)
        if every_s > 0:
            # On a grid, so that times do not drift where the frame rate is no multiple.
            due_s = ((time_s + _CLOCK_S) // every_s + 1) * every_s - _CLOCK_S
    if num_damaged:
        raise damaged(path, f"{num_damaged} of its frames cannot be decoded")


def _is_animated(path: Path) -> bool:
    try:
        with Image.open(path, formats=["GIF"]) as image:
            return bool(getattr(image, "is_animated", False))
    except DECODE_ERRORS:
        return False  # Of a damaged GIF the first frame may still be read, as an image.
