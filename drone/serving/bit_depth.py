"""Scales images of more than 8 bits per value to 8 bits.

A file of 16-bit values does not say which of them are used: cameras store 10, 12 or 14 bits in it,
and thermal cameras a band of a few hundred values. The high byte alone would be black or one grey.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_DEPTHS = (8, 10, 12, 14, 16)
"""Bits per value that cameras use; the least that holds an image's values is taken."""

_OUTLIERS_PER_PIXEL = 1e-4
"""Share of the values at either end that may be dead or hot pixels of a sensor."""

_MIN_BAND, _MAX_BAND_SHARE = 16, 1 / 8
"""Values of a band that is stretched: fewer are noise, more fill an eighth of the depth."""

_BAND_ROWS = 256


def to_8_bits(values: NDArray[Any], depth: int | None = None) -> NDArray[np.uint8]:
    """Scales values of up to 16 bits to 8 bits, whatever part of their range they use.

    The values are taken as 8, 10, 12, 14 or 16 bits, whichever is the least that holds them, and
    their upper 8 bits are returned. If they fill less than an eighth of that range, the band
    between the least and the largest becomes 0 to 255; so do negative values and those beyond 16
    bits. One in 10,000 values at either end may lie outside.

    Args:
        values: Whole numbers, rows first.
        depth: Bits per value, if the file says so; None to find them out.
    """
    low, high = _limits(values)
    band = high - low
    if depth is None:
        # One colour and noise stay dark: they say nothing about the depth.
        depths = _DEPTHS if band >= _MIN_BAND else _DEPTHS[-1:]
        depth = next((bits for bits in depths if high < 1 << bits), 0)
    is_narrow = _MIN_BAND <= band < (1 << depth) * _MAX_BAND_SHARE
    is_stretched = low < 0 or depth == 0 or is_narrow
    scaled = np.empty(values.shape, np.uint8)
    # In bands: floating-point numbers would take four times the memory of the image.
    for top in range(0, len(values), _BAND_ROWS):
        rows = values[top : top + _BAND_ROWS]
        if is_stretched:
            rows = (rows.astype(np.float32) - low) * np.float32(255 / max(band, 1))
        else:
            rows = rows >> (depth - 8)
        # Rounded down, as a shift does.
        scaled[top : top + _BAND_ROWS] = rows.clip(0, 255)
    return scaled


def _limits(values: NDArray[Any]) -> tuple[int, int]:
    """Returns the least and the largest value that are no outliers."""
    flat = values.ravel()
    num_outliers = int(flat.size * _OUTLIERS_PER_PIXEL)
    if not num_outliers:
        return int(flat.min()), int(flat.max())
    last = flat.size - 1 - num_outliers
    parted = np.partition(flat, (num_outliers, last))
    return int(parted[num_outliers]), int(parted[last])
