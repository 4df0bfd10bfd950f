"""Boxes around what is to be classified: which image they belong to, and how they are cut out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drone.errors import DataError

MARGIN = 0.35
"""Margin on each side, as a share of the box's longer side. Measured: see docs/boxes.md."""

_MAX_SIDE_PX = 4096
"""Sides of a crop beyond which it is shrunk. A model sees at most 3584 px, and a square around a
long strip could have many times the pixels of its image."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box around one object in an image or in a frame of a clip."""

    path: str
    """Image or clip as the file of boxes names it; of a YOLO file, its own path without .txt."""

    x: float
    """Left edge in pixels, or as a share of the image's width if `relative`."""

    y: float
    """Top edge in pixels, or as a share of the image's height if `relative`."""

    w: float
    """Width in the same unit as x."""

    h: float
    """Height in the same unit as y."""

    relative: bool = False
    """Whether the box is in shares of the image's sides, as in YOLO files."""

    track: str = ""
    """Name of the object that the box follows through a clip; may be empty."""

    frame: int | None = None
    """Number of the clip's frame, from 0; None for an image."""

    origin: str
    """File and place that the box was read from, for messages: "boxes.csv, line 3"."""


def assign_boxes(boxes: Sequence[Box], files: Sequence[Path]) -> dict[Path, list[Box]]:
    """Returns the boxes of each image and clip that has some.

    A box belongs to the file whose path ends as its own path does, so that both may be absolute or
    relative to whatever folder.

    Args:
        boxes: Boxes from `drone.inference.box_files.read_boxes`.
        files: Images and clips.

    Raises:
        DataError: No box belongs to any of the files, or one to several.
    """
    by_name: dict[str, list[Path]] = {}
    for file in files:
        for name in {file.name, file.stem}:  # YOLO files are named without the image's suffix.
            by_name.setdefault(name, []).append(file)
    assigned: dict[Path, list[Box]] = {}
    for box in boxes:
        file_of_box = _file_of(box, by_name)
        if file_of_box is not None:
            assigned.setdefault(file_of_box, []).append(box)
    if boxes and not assigned:
        raise DataError(
            f"{boxes[0].origin}: the box is for {boxes[0].path}, and no box is for any of the "
            f"{len(files)} files. Give the files that the boxes were drawn on."
        )
    return assigned


def tracks_of(boxes: Sequence[Box]) -> dict[str, list[Box]]:
    """Returns the boxes of one clip by the object that they follow, each in the order of frames.

    Boxes without the name of a track are one track, named "", if no frame has two of them. If one
    has, nothing tells which belong together, and they are left out.

    Args:
        boxes: Boxes of one clip.
    """
    tracks: dict[str, list[Box]] = {}
    for box in sorted(boxes, key=lambda box: -1 if box.frame is None else box.frame):
        tracks.setdefault(box.track, []).append(box)
    unnamed = [box.frame for box in tracks.get("", [])]
    if len(set(unnamed)) < len(unnamed):
        del tracks[""]
    return tracks


def crop(image: Image.Image, box: Box, margin: float = MARGIN) -> Image.Image:
    """Cuts a square around a box, as large as its longer side and the margins.

    Beyond the edges of the image its outermost pixels are repeated. The part of a box that is
    outside of the image is left out first.

    Args:
        image: RGB image that the box was drawn on.
        box: The box.
        margin: Margin on each side, as a share of the box's longer side.

    Raises:
        DataError: The box has no area, or none in the image.
    """
    part = np.array(visible_part(box, *image.size), np.float64)
    scale = _MAX_SIDE_PX / _square_side(part, margin)
    if scale < 1:
        image, part = _shrunk(image, scale), part * scale
    side = max(round(_square_side(part, margin)), 1)
    first_column, first_row = np.round((part[:2] + part[2:] - side) / 2)
    columns = np.arange(first_column, first_column + side).clip(0, image.width - 1).astype(int)
    rows = np.arange(first_row, first_row + side).clip(0, image.height - 1).astype(int)
    # Only the part in the image becomes an array: of a large photograph a box is little.
    pixels = np.asarray(image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))
    return Image.fromarray(pixels[np.ix_(rows - rows[0], columns - columns[0])])


def _square_side(part: NDArray[np.float64], margin: float) -> float:
    """Returns the side of the square around left, top, right and bottom, with its margins."""
    return float((part[2:] - part[:2]).max() * (1 + 2 * margin))


def _shrunk(image: Image.Image, scale: float) -> Image.Image:
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.BILINEAR)


def visible_part(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom in pixels of the part of a box that is in the image.

    Args:
        box: The box.
        width: Width of the image that it was drawn on, in pixels.
        height: Height of it.

    Raises:
        DataError: The box has no area, or none in the image.
    """
    if box.w <= 0 or box.h <= 0:
        raise DataError(f"{box.origin}: the box is {box.w:g} wide and {box.h:g} high: it is empty.")
    across, down = (width, height) if box.relative else (1, 1)
    left, right = max(box.x * across, 0), min((box.x + box.w) * across, width)
    top, bottom = max(box.y * down, 0), min((box.y + box.h) * down, height)
    if left >= right or top >= bottom:
        raise DataError(
            f"{box.origin}: the box is outside of the image, which has {width} x {height} pixels."
        )
    return left, top, right, bottom


def _file_of(box: Box, by_name: Mapping[str, Sequence[Path]]) -> Path | None:
    path = Path(box.path.replace("\\", "/"))
    candidates = [file for file in by_name.get(path.name, []) if _same_end(file, path)]
    exact = [file for file in candidates if path in (file, file.with_suffix(""))]
    found = exact or candidates
    if len(found) > 1:
        raise DataError(
            f"{box.origin}: {box.path} may be {found[0]} or {found[1]}. Write more of its path."
        )
    return found[0] if found else None


def _same_end(first: Path, second: Path) -> bool:
    """Whether the folders of one path are the last folders of the other."""
    folders = [[part for part in path.parts[:-1] if part != "."] for path in (first, second)]
    shared = min(map(len, folders))
    return shared == 0 or folders[0][-shared:] == folders[1][-shared:]
