"""Evidence: how much each cell of an image speaks for a class. Axes: H and W cells."""

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evidence:
    """What an answer rests on; docs/why.md says what it means and what not."""

    class_name: str
    """Class that the evidence is for."""

    map: tuple[tuple[float, ...], ...]
    """Rows of cells from the top of the image; see `normalised`."""

    def encoded(self) -> str:
        """Returns the map for a page: `encode` of it."""
        return encode(np.array(self.map))


def normalised(map_HW: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns an evidence map on the scale 0 to 1.

    Evidence against the class becomes 0. The rest is divided by its maximum; a map without any
    evidence for the class is all 0.
    """
    positive_HW: NDArray[np.floating] = np.maximum(map_HW, 0)
    highest = float(positive_HW.max())
    return positive_HW / highest if highest > 0 else positive_HW


def encode(map_HW: NDArray[np.floating]) -> str:
    """Returns a normalised map as base64 of one byte per cell, which `<heat-map>` draws."""
    return base64.b64encode(np.round(map_HW * 255).astype(np.uint8).tobytes()).decode()
