"""Packs the images of a plan: each decoded and resized once, into shards of uint8 pixels."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from drone.data.bins import bin_sides
from drone.data.pixels import SHARD_ROWS, bin_folder, bin_shard_rows, shard_name
from drone.data.prepare.plan import Mapper, PreparePlan, Row
from drone.data.prepare.roots import Opener
from drone.errors import DataError, ImageError
from drone.files import checksum
from drone.serving.preprocess import Preprocessing, to_pixels


def pack_images(plan: PreparePlan, folder: Path, mapper: Mapper, *, bins: bool) -> dict[Path, str]:
    """Packs all images with a row in the pixels, one shard per task.

    Args:
        plan: Which images.
        folder: The `pixels` folder of the data set that is being built.
        mapper: Runs the packing.
        bins: Whether to pack larger images at the sides of their bins too.

    Returns:
        The SHA-256 of each shard.

    Raises:
        DataError: A raw file has changed since the scan, or is gone.
    """
    images = plan.manifest[plan.manifest["pixel_row"] >= 0].sort_values("pixel_row")
    side_px = plan.settings.preprocessing.side_px
    tasks = _shard_tasks(images, folder, side_px, SHARD_ROWS)
    if bins:
        for side, images_of_bin in images.groupby(bin_sides(images)):
            # Images of the smallest bin are packed already, with all others, at that side.
            if side > side_px:
                target = folder / bin_folder(side)
                target.mkdir()
                tasks += _shard_tasks(images_of_bin, target, int(side), bin_shard_rows(side))
    settings = plan.settings.preprocessing
    pack_row = functools.partial(_pack_row, settings=settings, opener=plan.opener)
    packed = mapper(pack_row, tasks, "packing")
    return {Path(row["target"]): row["checksum"] for row in packed}


def _shard_tasks(
    images: pd.DataFrame, folder: Path, side_px: int, rows_per_shard: int
) -> list[Row]:
    files = images[["root", "path", "md5"]].to_dict("records")
    return [
        {
            "target": str(folder / shard_name(number)),
            "images": json.dumps(files[start : start + rows_per_shard]),
            "side_px": side_px,
        }
        for number, start in enumerate(range(0, len(files), rows_per_shard))
    ]


def _pack_row(row: Row, settings: Preprocessing, opener: Opener) -> Row:
    images = [_PackedFile(**image) for image in json.loads(row["images"])]
    settings = replace(settings, side_px=row["side_px"])
    target = Path(row["target"])
    _pack_shard(images, target, settings, opener)
    return {"target": row["target"], "checksum": checksum(target)}


@dataclass(frozen=True)
class _PackedFile:
    """A raw file to pack, and the content that it must have."""

    root: str
    path: str
    md5: str


def _pack_shard(
    images: Sequence[_PackedFile], target: Path, settings: Preprocessing, opener: Opener
) -> None:
    """Decodes the files into one .npy file of (rows, side_px, side_px, 3) uint8.

    The file is written under a temporary name and renamed, so a shard that exists is complete.

    Raises:
        DataError: A file has changed since the scan, or is gone.
    """
    pixels = np.empty((len(images), settings.side_px, settings.side_px, 3), np.uint8)
    for row, image in enumerate(images):
        try:
            data = opener(image.root).read(image.path, settings.max_bytes)
            # The manifest describes the scanned bytes, and the pixels must belong to them.
            if hashlib.md5(data, usedforsecurity=False).hexdigest() != image.md5:
                raise ImageError("undecodable", "its content differs")
            pixels[row] = to_pixels(data, settings)
        except (OSError, ImageError) as error:
            raise DataError(
                f"{image.root}/{image.path} has changed since it was scanned ({error}). Restore "
                f"the file, or prepare the data set again when nothing writes to the raw folder."
            ) from error
    # It ends in .npy because np.save would append that otherwise.
    temporary = target.with_suffix(".tmp.npy")
    np.save(temporary, pixels)
    temporary.rename(target)
