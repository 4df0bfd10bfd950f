"""Packed pixels: each kept picture as the model sees it, in memory-mapped shards.

pixels/shard-00000.npy          at 224 px
pixels/0448/shard-00000.npy     of the pictures whose bin is 448, at 448 px; and so on
"""

import errno
import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drone.data.bins import BIN_SIDES_PX
from drone.data.roots import Opener
from drone.errors import DataError, ImageError
from drone.serving.preprocess import Preprocessing, to_pixels

SHARD_ROWS = 512
"""Pictures in a shard: 77 MB at 224 px. Only the last shard of a set is shorter."""


_MOST_OPEN = 64
"""Shards that a store keeps open."""


def shard_name(number: int) -> str:
    """File name of a shard below `pixels/`."""
    return f"shard-{number:05d}.npy"


def bin_folder(side_px: int) -> str:
    """Folder below `pixels/` of the pictures of a larger bin."""
    return f"{side_px:04d}"


def bin_rows(side_px: int) -> int:
    """Pictures in a shard of a larger bin: about as many bytes as in one of 224 px."""
    return max(1, SHARD_ROWS * BIN_SIDES_PX[0] ** 2 // side_px**2)


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

    def __init__(self, folder: Path, rows: int, side_px: int, shard_rows: int = SHARD_ROWS) -> None:
        """Opens the shards.

        Args:
            folder: the `pixels` folder of a data set, or that of a bin.
            rows: how many pictures it must hold.
            side_px: of each.
            shard_rows: pictures in each shard but the last.

        Raises:
            DataError: a shard is missing or does not have the rows it should have.
        """
        self.rows = rows
        self.side_px = side_px
        self._shard_rows = shard_rows
        self._files = [
            folder / shard_name(number) for number in range(math.ceil(rows / shard_rows))
        ]
        # Large pictures are two to a shard, and a process may have a thousand files open.
        self._shard = functools.lru_cache(_MOST_OPEN)(self._open)
        for number in range(len(self._files)):
            self._open(number)

    def _open(self, number: int) -> NDArray[np.uint8]:
        file = self._files[number]
        rows = min(self._shard_rows, self.rows - number * self._shard_rows)
        expected = (rows, self.side_px, self.side_px, 3)
        try:
            shard: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise DataError(
                    f"{file} cannot be opened: too many files are open. Raise the limit: ulimit -n"
                ) from error
            raise DataError(
                f"{file} is missing or damaged. Delete the data set and prepare it again."
            ) from error
        if shard.shape != expected or shard.dtype != np.uint8:
            raise DataError(
                f"{file} holds {shard.shape} and should hold {expected}. "
                f"Delete the data set and prepare it again."
            )
        return shard

    def gather(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pictures of these rows, (N, side_px, side_px, 3) uint8, in their order."""
        pixels = np.empty((len(rows_N), self.side_px, self.side_px, 3), np.uint8)
        for position, row in enumerate(rows_N.tolist()):
            shard, offset = divmod(row, self._shard_rows)
            pixels[position] = self._shard(shard)[offset]
        return pixels

    def sides(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The side in which `gather` gives each of these rows."""
        return np.full(len(rows_N), self.side_px)


class BinnedStore:
    """The packed pixels with each picture at the side of its bin."""

    def __init__(self, folder: Path, sides_N: NDArray[np.int64], side_px: int) -> None:
        """Opens the shards of all bins.

        Args:
            folder: the `pixels` folder of a data set.
            sides_N: bin of each row of the pictures at the smallest side.
            side_px: the smallest side.

        Raises:
            DataError: as PixelStore.
        """
        self.rows, self.side_px = len(sides_N), side_px
        self._sides_N = sides_N
        self._places_N = np.arange(len(sides_N))
        self._stores = {side_px: PixelStore(folder, len(sides_N), side_px)}
        for side in sorted({int(side) for side in sides_N} - {side_px}):
            own = np.flatnonzero(sides_N == side)
            self._places_N[own] = np.arange(len(own))
            self._stores[side] = PixelStore(
                folder / bin_folder(side), len(own), side, bin_rows(side)
            )

    def gather(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pictures of these rows, all of one bin, (N, side, side, 3) uint8, in their order."""
        sides = {int(side) for side in self._sides_N[rows_N]} or {self.side_px}
        if len(sides) > 1:
            raise ValueError(f"A batch holds one bin, and these rows are of {sorted(sides)}.")
        return self._stores[sides.pop()].gather(self._places_N[rows_N])

    def sides(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The side of the bin of each of these rows."""
        return self._sides_N[rows_N]
