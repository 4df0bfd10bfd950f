"""Packed images of a data set: what the images of classes and the negatives have in common."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drone.data.pixels import BinnedStore, PixelStore


@dataclass(frozen=True, kw_only=True)
class Images:
    """N packed images, in the order of the manifest."""

    name: str
    paths: tuple[str, ...]
    keys_N: NDArray[np.int64]
    """One number per image that depends on its content alone; the key of its random numbers."""

    rows_N: NDArray[np.int64]
    """Rows of the images in the store."""

    store: PixelStore | BinnedStore

    def __len__(self) -> int:
        return len(self.rows_N)

    def subset(self, name: str, positions_P: NDArray[np.int64]) -> Self:
        """Returns the images at these positions, in this order, under a name of their own."""
        return replace(
            self,
            name=name,
            paths=tuple(self.paths[position] for position in positions_P),
            keys_N=self.keys_N[positions_P],
            rows_N=self.rows_N[positions_P],
        )

    def gather(self, positions_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns the pixels of the images at these positions, (B, side, side, 3) uint8.

        If the data set is read at its bins, all of them must be of one bin.
        """
        return self.store.gather(self.rows_N[positions_B])

    @property
    def sides_N(self) -> NDArray[np.int64]:
        """Side of each image's pixels."""
        return self.store.sides(self.rows_N)


@dataclass(frozen=True, kw_only=True)
class Negatives(Images):
    """The images of one split that show none of the classes; N is 0 if there are none."""

    kinds_N: NDArray[np.str_]
    """Kind of each image: the name of its folder, such as "airplane"."""

    def subset(self, name: str, positions_P: NDArray[np.int64]) -> Self:
        """As of `Images`."""
        images = super().subset(name, positions_P)
        return replace(images, kinds_N=self.kinds_N[positions_P])
