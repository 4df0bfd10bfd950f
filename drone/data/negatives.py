"""The negatives of a data set: images that show none of the classes, by kind."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drone.data.pixels import BinnedStore, PixelStore


@dataclass(frozen=True)
class Negatives:
    """The N negatives of one split, in the order of the manifest; N is 0 if there are none."""

    name: str
    paths: tuple[str, ...]
    kinds_N: NDArray[np.str_]
    """Kind of each image: the name of its folder, such as "airplane"."""

    keys_N: NDArray[np.int64]
    """One number per image that depends on its content alone; the key of its random numbers."""

    rows_N: NDArray[np.int64]
    """Rows of the images in the store."""

    store: PixelStore | BinnedStore

    def __len__(self) -> int:
        return len(self.rows_N)

    def gather(self, positions_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns the pixels of the images at these positions, (B, side, side, 3) uint8.

        If the data set is read at its bins, all of them must be of one bin.
        """
        return self.store.gather(self.rows_N[positions_B])

    @property
    def sides_N(self) -> NDArray[np.int64]:
        """Side of each image's pixels."""
        return self.store.sides(self.rows_N)
