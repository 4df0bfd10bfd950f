"""Recognises images that show nothing: one colour, with no more than the noise of compression."""

import numpy as np
from PIL import Image

SIDE_PX = 128
"""Side of the square on which an image is judged; averaging to it removes noise."""

MIN_RANGE = 16
"""Least difference between the darkest and the brightest value of an image, of 255.

Measured on 1,461 collected images of drones, birds and other things in the sky, objects as small
as 20 pixels: three are of one colour, and of the others the least spans 44 in grey. One colour with
noise of a standard deviation of 2, saved as JPEG, spans at most 10.
"""


def is_blank(image: Image.Image) -> bool:
    """Whether an image shows nothing.

    Args:
        image: In mode "L" or "RGB"; in the latter each channel must be blank.
    """
    square = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    values = np.asarray(square).reshape(SIDE_PX * SIDE_PX, -1)
    return bool((np.ptp(values.astype(np.int16), axis=0) < MIN_RANGE).all())
