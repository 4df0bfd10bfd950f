"""Packed pixels: each kept picture once, as the model sees it, in memory-mapped shards."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drone.data.roots import Opener
from drone.errors import DataError, ImageError
from drone.serving.preprocess import Preprocessing, to_pixels

SHARD_ROWS = 512
"""Pictures in a shard: 77 MB at 224 px. Only the last shard of a set is shorter."""


def shard_name(number: int) -> str:
    """File name of a shard below `pixels/`."""
    return f"shard-{number:05d}.npy"


@dataclass(frozen=True)
class Picture:
    """A file to pack, and what it must contain."""

    root: str
    path: str
    md5: str


def pack_shard(
    pictures: Sequence[Picture], target: Path, settings: Preprocessing, opener: Opener
) -> int:
    """Decodes the files into one .npy file of (rows, side_px, side_px, 3) uint8.

    Written to a temporary name, then renamed: a shard that exists is whole.

    Returns:
        The number of pictures packed.

    Raises:
        DataError: a file that the scan could read has changed since, or is gone.
    """
    pixels = np.empty((len(pictures), settings.side_px, settings.side_px, 3), np.uint8)
    for row, picture in enumerate(pictures):
        try:
            data = opener(picture.root).read(picture.path, settings.max_bytes)
            if hashlib.md5(data, usedforsecurity=False).hexdigest() != picture.md5:
                raise ImageError(422, "undecodable", "Its content is another.")
            pixels[row] = to_pixels(data, settings)
        except (OSError, ImageError) as error:
            raise DataError(
                f"{picture.root}/{picture.path} is not what it was when it was scanned ({error}). "
                f"Bring it back, or start again when nothing writes to the raw folder."
            ) from error
    temporary = target.with_suffix(".tmp.npy")
    np.save(temporary, pixels)
    temporary.rename(target)
    return len(pictures)


class PixelStore:
    """Rows of the packed pixels, read on demand from the memory-mapped shards."""

    def __init__(self, folder: Path, rows: int, side_px: int) -> None:
        """Opens the shards.

        Args:
            folder: the `pixels` folder of a data set.
            rows: how many pictures it must hold.
            side_px: of each.

        Raises:
            DataError: a shard is missing or does not have the rows it should have.
        """
        self.rows = rows
        self.side_px = side_px
        self._shards = [
            self._open(folder / shard_name(number), min(SHARD_ROWS, rows - start), side_px)
            for number, start in enumerate(range(0, rows, SHARD_ROWS))
        ]

    @staticmethod
    def _open(file: Path, rows: int, side_px: int) -> NDArray[np.uint8]:
        try:
            shard: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} is missing or damaged. Delete the data set and prepare it again."
            ) from error
        if shard.shape != (rows, side_px, side_px, 3) or shard.dtype != np.uint8:
            raise DataError(
                f"{file} holds {shard.shape} and should hold {(rows, side_px, side_px, 3)}. "
                f"Delete the data set and prepare it again."
            )
        return shard

    def gather(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pictures of these rows, (N, side_px, side_px, 3) uint8, in their order."""
        pixels = np.empty((len(rows_N), self.side_px, self.side_px, 3), np.uint8)
        for position, row in enumerate(rows_N.tolist()):
            pixels[position] = self._shards[row // SHARD_ROWS][row % SHARD_ROWS]
        return pixels
