"""Packed pixels: each image of a data set as the model sees it, in memory-mapped shards.

pixels/shard-00000.npy          all images at 224 px
pixels/0448/shard-00000.npy     images whose bin is 448, at 448 px; and so on
"""

import errno
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drone.commands import command
from drone.data.bins import BIN_SIDES_PX
from drone.errors import DamagedError, DataError
from drone.files import checksum

SHARD_ROWS = 512
"""Images per shard: 77 MB at 224 px. Only the last shard of a set is shorter."""

_MAX_OPEN_SHARDS = 64


def shard_name(number: int) -> str:
    """Returns the file name of a shard."""
    return f"shard-{number:05d}.npy"


def bin_folder(side_px: int) -> str:
    """Returns the folder, below `pixels/`, of the images of a larger bin."""
    return f"{side_px:04d}"


def bin_shard_rows(side_px: int) -> int:
    """Returns the images per shard of a bin: about as many bytes as in a shard of 224 px."""
    return max(1, SHARD_ROWS * BIN_SIDES_PX[0] ** 2 // side_px**2)


class PixelStore:
    """Reads packed images of one size from memory-mapped shards, on demand."""

    def __init__(
        self,
        folder: Path,
        num_rows: int,
        side_px: int,
        checksums: Mapping[Path, str],
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        """Opens the shards.

        Args:
            folder: The `pixels` folder of a data set, or the folder of a bin in it.
            num_rows: Number of images that it must hold.
            side_px: Side of each image.
            checksums: SHA-256 by file. A shard is checked when an image is first read from it.
            shard_rows: Images in each shard but the last.

        Raises:
            DamagedError: A shard is missing or of the wrong shape.
            DataError: Too many files are open.
        """
        self.num_rows = num_rows
        self.side_px = side_px
        self._shard_rows = shard_rows
        self._checksums = checksums
        self._checked: set[int] = set()
        self._files = [
            folder / shard_name(number) for number in range(math.ceil(num_rows / shard_rows))
        ]
        # The largest images are two to a shard, and a process may have a thousand files open.
        self._shard = functools.lru_cache(_MAX_OPEN_SHARDS)(self._open_checked)
        # All are opened once now: a damaged data set fails before training, not in the middle.
        for number in range(len(self._files)):
            self._open(number)

    def _open_checked(self, number: int) -> NDArray[np.uint8]:
        # Once in each process: this reads the whole shard, which training is about to do anyway.
        if number not in self._checked:
            file = self._files[number]
            if checksum(file) != self._checksums[file]:
                raise damaged(file, "its checksum differs")
            self._checked.add(number)
        return self._open(number)

    def _open(self, number: int) -> NDArray[np.uint8]:
        file = self._files[number]
        rows = min(self._shard_rows, self.num_rows - number * self._shard_rows)
        expected = (rows, self.side_px, self.side_px, 3)
        try:
            shard: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise DataError(
                    f"{file} cannot be opened: too many files are open. Raise the limit: "
                    f"ulimit -n 65536"
                ) from error
            raise damaged(file, error) from error
        if shard.shape != expected or shard.dtype != np.uint8:
            raise damaged(file, f"its shape is {shard.shape}, expected {expected}")
        return shard

    def gather(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns the images in these rows, (N, side_px, side_px, 3) uint8, in their order."""
        # One by one, since the images of a batch lie in different shards.
        pixels = np.empty((len(rows_N), self.side_px, self.side_px, 3), np.uint8)
        for position, row in enumerate(rows_N.tolist()):
            shard, offset = divmod(row, self._shard_rows)
            pixels[position] = self._shard(shard)[offset]
        return pixels

    def sides(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the side at which `gather` gives each of these rows."""
        return np.full(len(rows_N), self.side_px)


def damaged(file: Path, reason: object) -> DamagedError:
    """Returns the error for a file of a data set that is not what `prepare` wrote."""
    # prepare mends it in place. Never advise to delete the folder: it holds the ledger.
    is_shard = file.suffix == ".npy"
    pixels = next((folder for folder in file.parents if is_shard and folder.name == "pixels"), file)
    return DamagedError(
        f"{file} is missing or damaged ({reason}). Mend it from the raw files: "
        f"{command('prepare', raw='RAW_FOLDER', out=pixels.parent)}"
    )


class BinnedStore:
    """Reads packed images, each at the side of its bin."""

    def __init__(
        self,
        folder: Path,
        sides_N: NDArray[np.int64],
        side_px: int,
        checksums: Mapping[Path, str],
    ) -> None:
        """Opens the shards of all bins.

        Args:
            folder: The `pixels` folder of a data set.
            sides_N: Bin side of each row of the store at the smallest side.
            side_px: The smallest side.
            checksums: SHA-256 by file.

        Raises:
            DataError: As for PixelStore.
        """
        self.num_rows, self.side_px = len(sides_N), side_px
        self._sides_N = sides_N
        # A larger bin numbers its own images from 0.
        self._row_in_bin_N = np.arange(len(sides_N))
        self._stores = {side_px: PixelStore(folder, len(sides_N), side_px, checksums)}
        for side in sorted({int(side) for side in sides_N} - {side_px}):
            rows = np.flatnonzero(sides_N == side)
            self._row_in_bin_N[rows] = np.arange(len(rows))
            self._stores[side] = PixelStore(
                folder / bin_folder(side), len(rows), side, checksums, bin_shard_rows(side)
            )

    def gather(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns the images in these rows, all of one bin, (N, side, side, 3) uint8."""
        sides = {int(side) for side in self._sides_N[rows_N]} or {self.side_px}
        if len(sides) > 1:
            raise ValueError(f"A batch holds one bin, and these rows are of {sorted(sides)}.")
        return self._stores[sides.pop()].gather(self._row_in_bin_N[rows_N])

    def sides(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the bin side of each of these rows."""
        return self._sides_N[rows_N]
