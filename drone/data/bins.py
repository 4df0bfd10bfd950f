"""The seven sizes that pictures of mixed resolutions are grouped by.

A picture belongs to the bin whose side is nearest to its own longer side, upright or not; a tie
goes to the smaller. There it is squashed to the bin's square, as every picture is to 224 px.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from drone.serving.preprocess import nearest_side

BIN_SIDES_PX = (224, 448, 672, 896, 1344, 1792, 3584)

PIXEL_BUDGET = 64 * 448 * 448
"""Pixels of a batch: 256, 64, 28, 16, 7, 4 and 1 pictures of the seven sizes."""


def nearest_bin(longer_sides_px: ArrayLike) -> NDArray[np.int64]:
    """Index in BIN_SIDES_PX of the size nearest to each longer side; ties go to the smaller."""
    return nearest_side(longer_sides_px, BIN_SIDES_PX)


def bin_side(longer_sides_px: ArrayLike) -> NDArray[np.int64]:
    """The side in pixels of the bin nearest to each longer side."""
    sides: NDArray[np.int64] = np.array(BIN_SIDES_PX)[nearest_bin(longer_sides_px)]
    return sides


def sides_of(manifest: pd.DataFrame) -> NDArray[np.int64]:
    """The bin's side of each picture of a manifest, in pixels."""
    return bin_side(manifest[["width", "height"]].max(axis=1).to_numpy())


def batch_of(side_px: int, batch_size: int, pixel_budget: int = PIXEL_BUDGET) -> int:
    """Pictures of a side that go through the network together, at least 1.

    Args:
        side_px: of the bin.
        batch_size: the most.
        pixel_budget: pixels that they may have together.
    """
    return max(1, min(batch_size, pixel_budget // side_px**2))
