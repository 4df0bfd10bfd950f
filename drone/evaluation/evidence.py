"""Evidence of a model for the images of an evaluation, and how much of it is outside of boxes.

Axes: N images, M of them, K classes, H and W cells, B boxes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drone.evaluation.batch_inference import LoadPixels, predict_in_batches
from drone.serving.predictor import Predictor

LoadEvidence = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Computes the evidence maps of the images at some positions, (M, K, H, W) float32."""


def evidence_loader(
    predictor: Predictor, sides_N: NDArray[np.int64], load_pixels: LoadPixels
) -> LoadEvidence:
    """Returns a function that computes evidence maps.

    Args:
        predictor: The model.
        sides_N: Side in pixels of each image as `load_pixels` returns it.
        load_pixels: Loads the images at given positions.
    """

    def load_evidence(positions_M: NDArray[np.int64]) -> NDArray[np.float32]:
        num_classes = len(predictor.info.classes)
        if not len(positions_M):
            return np.zeros((0, num_classes, 0, 0), np.float32)

        def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
            maps_NKHW = predictor.predict_outputs(pixels_NHWC, evidence=True).evidence_NKHW
            assert maps_NKHW is not None
            return maps_NKHW.reshape(len(maps_NKHW), -1)

        values = predict_in_batches(
            predict, sides_N[positions_M], lambda chosen_B: load_pixels(positions_M[chosen_B])
        )
        num_rows = math.isqrt(values.shape[1] // num_classes)
        return values.reshape(len(positions_M), num_classes, num_rows, num_rows)

    return load_evidence


@dataclass(frozen=True)
class OutsideShare:
    """Means over some images that have boxes."""

    evidence: float
    """Share of the positive evidence for the true class in cells that no box touches, 0 to 1."""

    area: float
    """Share of the cells that no box touches: what evidence spread evenly would have."""

    images: int
    """Number of images."""


@dataclass(frozen=True)
class OutsideBoxes:
    """How much of the evidence for the true class lies outside of the boxes."""

    overall: OutsideShare
    by_class: dict[str, OutsideShare]
    """By the name of each class that has such images."""

    @property
    def sentence(self) -> str:
        """The result in words."""
        overall = self.overall
        return (
            f"Of the evidence for the true class, {overall.evidence:.0%} lies where no box is, "
            f"which is {overall.area:.0%} of the area ({overall.images} images with boxes)."
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, as metrics.json has them."""
        by_class = {name: asdict(share) for name, share in self.by_class.items()}
        return {**asdict(self.overall), "by_class": by_class}


def outside_boxes(
    maps_MHW: NDArray[np.float32],
    boxes_M: Sequence[NDArray[np.float64]],
    class_names_M: Sequence[str],
) -> OutsideBoxes | None:
    """Measures how much of the evidence is in cells that no box touches.

    Cells count as a whole, since a map is no finer: of an object that is smaller than its cell,
    most of the evidence would seem to be outside otherwise.

    Args:
        maps_MHW: Evidence of each image for its true class, of any sign.
        boxes_M: Boxes in each image, (B, 4): left, top, right and bottom as shares of its sides.
        class_names_M: True class of each image.

    Returns:
        None if no image has evidence for its class.
    """
    positive_MHW = np.maximum(maps_MHW, 0)
    outside_MHW = np.stack([~_touched(boxes_B4, *maps_MHW.shape[1:]) for boxes_B4 in boxes_M])
    total_M = positive_MHW.sum(axis=(1, 2))
    has_evidence_M = total_M > 0
    if not has_evidence_M.any():
        return None
    # Without any evidence there is no share.
    evidence_M = (positive_MHW * outside_MHW).sum(axis=(1, 2)) / np.where(
        has_evidence_M, total_M, 1
    )
    area_M = outside_MHW.mean(axis=(1, 2))
    names_M = np.asarray(class_names_M)

    def share(chosen_M: NDArray[np.bool_]) -> OutsideShare:
        evidence, area = evidence_M[chosen_M].mean(), area_M[chosen_M].mean()
        return OutsideShare(float(evidence), float(area), int(chosen_M.sum()))

    names = sorted(set(names_M[has_evidence_M].tolist()))
    by_class = {name: share(has_evidence_M & (names_M == name)) for name in names}
    return OutsideBoxes(share(has_evidence_M), by_class)


def _touched(boxes_B4: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Returns which cells of a grid some box touches, (H, W)."""
    touched_HW = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes_B4 * [width, height, width, height]:
        rows = slice(math.floor(top), math.ceil(bottom))
        touched_HW[rows, math.floor(left) : math.ceil(right)] = True
    return touched_HW
