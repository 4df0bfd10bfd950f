"""The seven sizes that pictures of mixed resolutions are grouped by."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BIN_SIDES_PX = (224, 448, 672, 896, 1344, 1792, 3584)


def nearest_bin(longer_sides_px: ArrayLike) -> NDArray[np.int64]:
    """Index in BIN_SIDES_PX of the size nearest to each longer side; ties go to the smaller."""
    sides = np.asarray(longer_sides_px)[..., None]
    nearest: NDArray[np.int64] = np.abs(sides - np.array(BIN_SIDES_PX)).argmin(axis=-1)
    return nearest
