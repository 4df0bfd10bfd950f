"""What the surroundings of a box say by themselves, and predictions without part of it.

Birds are photographed against the sky, and a network learns it: of a few blurred pixels in front
of plain sky it says bird, whatever they are. So a crop is predicted twice, as it is and with the
object painted out, and a share of what the second prediction says of bird and drone is subtracted
from the first. Zhao et al. 2021, "Calibrate before use", do the same for prompts without content.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from drone.labels import ClassSet
from drone.serving.roles import role_probabilities

SHARE = 0.5
"""Share of the surroundings' log-odds that is subtracted (docs/boxes.md)."""

MIN_MARGIN = 0.1
"""Margin of a crop below which there are no surroundings to speak of."""

_MAX_PAD = 0.15
"""Room around the box that is painted out too, as a share of its sides: blur and compression take
the object there."""

_PAINTED_PX = 32
"""Side at which the object is painted out: in the full size it takes ten times as long, and what is
filled in need not be sharp."""

_MIN_PROBABILITY = 1e-6


def paint_out(
    pixels_HWC: NDArray[np.uint8], box_size: tuple[float, float], margin: float
) -> NDArray[np.uint8]:
    """Returns a square crop with its object painted out, from what is around (Telea 2004).

    Args:
        pixels_HWC: The crop in the size of the model's input, RGB.
        box_size: Width and height of the box in its middle, in any unit.
        margin: Margin of the crop, as a share of the box's longer side; at least `MIN_MARGIN`.
    """
    pad = min(_MAX_PAD, margin / 2)
    shares = np.array(box_size) * (1 + 2 * pad) / (max(box_size) * (1 + 2 * margin))
    low_x, low_y = np.floor((0.5 - shares / 2) * _PAINTED_PX).astype(int)
    hole_HW = np.zeros((_PAINTED_PX, _PAINTED_PX), np.uint8)
    hole_HW[low_y : _PAINTED_PX - low_y, low_x : _PAINTED_PX - low_x] = 1
    small = cv2.resize(pixels_HWC, hole_HW.shape, interpolation=cv2.INTER_AREA)
    filled = cv2.inpaint(small, hole_HW, 3, cv2.INPAINT_TELEA)
    size = pixels_HWC.shape[1::-1]
    filled_HWC = cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
    # A soft edge, which is no edge of an object.
    share_HW1 = cv2.resize(hole_HW.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)[
        ..., None
    ]
    blended_HWC = pixels_HWC * (1 - share_HW1) + filled_HWC * share_HW1
    return np.rint(blended_HWC).astype(np.uint8)


def discount(
    probs_NK: NDArray[np.float32],
    surroundings_NK: NDArray[np.float32],
    classes: ClassSet,
    share: float,
) -> NDArray[np.float32]:
    """Returns probabilities without a share of what the surroundings say of the roles, (N, K).

    The log-probability of each role loses `share` times that of the surroundings; within a role the
    classes keep their proportions. Classes of one role stay as they are.

    Args:
        probs_NK: Probabilities of the crops.
        surroundings_NK: Probabilities of the same crops with the object painted out.
        classes: Classes in the order of their indices.
        share: From 0, which changes nothing, to 1.
    """
    own_NR, around_NR = (
        np.log(np.maximum(role_probabilities(values_NK, classes), _MIN_PROBABILITY))
        for values_NK in (probs_NK, surroundings_NK)
    )
    logs_NR = own_NR - share * around_NR
    logs_NR -= np.logaddexp.reduce(logs_NR, axis=1, keepdims=True)
    factors_NK = np.exp(logs_NR - own_NR)[:, classes.role_indices]
    discounted_NK = probs_NK * factors_NK
    discounted_NK /= discounted_NK.sum(axis=1, keepdims=True)
    return discounted_NK.astype(np.float32)
