"""Perceptual hashes: bits that barely change when an image is resized or compressed."""

import numpy as np
from PIL import Image
from scipy.fft import dctn

HASH_BITS = 256
HASH_BYTES = HASH_BITS // 8

_SIDE_PX = 64
_FREQUENCIES = 16
"""Frequencies per axis: 16 x 16 give the 256 bits."""


def perceptual_hash(image: Image.Image) -> bytes:
    """Returns the 32-byte hash of an image, which hardly depends on its size and compression.

    Each bit says whether one of the 16 x 16 lowest frequencies of a discrete cosine transform of
    the grey image exceeds their median (Zauner 2010, pHash, with 256 bits instead of 64).
    """
    grey = image if image.mode == "L" else image.convert("L")
    grey = grey.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    frequencies = dctn(np.asarray(grey, dtype=np.float32), norm="ortho")
    low = frequencies[:_FREQUENCIES, :_FREQUENCIES].ravel()
    # The first coefficient is the mean brightness and far larger than all others.
    bits = low > np.median(low[1:])
    return np.packbits(bits).tobytes()
