"""The seven sizes ("bins") that images of mixed resolutions are grouped by.

An image belongs to the bin whose side is nearest to its longer side, whatever its orientation; a
tie goes to the smaller. It is resized to the bin's square, ignoring its aspect ratio, as every
image is to 224 px.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from drone.serving.preprocess import nearest_side

BIN_SIDES_PX = (224, 448, 672, 896, 1344, 1792, 3584)

PIXEL_BUDGET = 64 * 448 * 448
"""Default pixels per batch: 256, 64, 28, 16, 7, 4 and 1 images of the seven sizes."""


def nearest_bin(longer_sides_px: ArrayLike) -> NDArray[np.int64]:
    """Returns the index in BIN_SIDES_PX nearest to each longer side; ties go to the smaller."""
    # Serving chooses the side by the same function, so that both agree on every tie.
    return nearest_side(longer_sides_px, BIN_SIDES_PX)


def nearest_bin_side(longer_sides_px: ArrayLike) -> NDArray[np.int64]:
    """Returns the side, in pixels, of the bin nearest to each longer side."""
    sides: NDArray[np.int64] = np.array(BIN_SIDES_PX)[nearest_bin(longer_sides_px)]
    return sides


def bin_sides(manifest: pd.DataFrame) -> NDArray[np.int64]:
    """Returns the side, in pixels, of the bin of each image of a manifest."""
    return nearest_bin_side(manifest[["width", "height"]].max(axis=1).to_numpy())


def batch_size_for(side_px: int, batch_size: int, pixel_budget: int = PIXEL_BUDGET) -> int:
    """Returns how many images of a bin go through the network together, at least 1.

    Args:
        side_px: Side of the bin.
        batch_size: Maximum number of images.
        pixel_budget: Maximum number of pixels, unless a single image has more.
    """
    return max(1, min(batch_size, pixel_budget // side_px**2))
