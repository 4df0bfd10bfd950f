"""How much of a model's evidence lies outside of the boxes around the objects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from drone.errors import DataError
from drone.evaluation.evidence import outside_boxes
from drone.inference.boxes import Box, assign_boxes, visible_part
from drone.workflows.evaluated_images import EvaluatedImages, ImageFile


def with_boxes(evaluated: EvaluatedImages, boxes: Sequence[Box]) -> EvaluatedImages:
    """Returns an evaluation with the share of the evidence that is outside of boxes.

    Args:
        evaluated: Images, with the model's predictions.
        boxes: Boxes, from `read_boxes`.

    Raises:
        DataError: No box is for any of the images, or one is outside of its image.
    """
    assigned = assign_boxes(boxes, [file.path for file in evaluated.files])
    positions_M = np.flatnonzero([file.path in assigned for file in evaluated.files])
    files_M = [evaluated.files[position] for position in positions_M]
    labels_M = evaluated.predictions.labels_N[positions_M]
    maps_MKHW = evaluated.load_evidence(positions_M)
    found = outside_boxes(
        maps_MKHW[np.arange(len(positions_M)), labels_M],
        [_shares(assigned[file.path], file) for file in files_M],
        [evaluated.predictions.classes[label] for label in labels_M],
    )
    if found is None:
        raise DataError(
            "The model has no evidence for the true class in any image with a box, so there is no "
            "share of it. Evaluate without --boxes."
        )
    facts = {**evaluated.facts, "boxes": f"on {len(positions_M)} images"}
    return replace(evaluated, outside_boxes=found, facts=facts)


def _shares(boxes: Sequence[Box], file: ImageFile) -> NDArray[np.float64]:
    """Returns boxes as shares of the sides of their image: left, top, right, bottom, (B, 4)."""
    size = (file.width, file.height)
    parts_B4 = np.array([visible_part(box, *size) for box in boxes])
    shares_B4: NDArray[np.float64] = parts_B4 / (size * 2)
    return shares_B4
