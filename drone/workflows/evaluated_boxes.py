"""How much of a model's evidence lies outside of the boxes around the objects."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drone.errors import DataError
from drone.evaluation.evidence import outside_boxes
from drone.inference.box_files import read_boxes
from drone.inference.boxes import Box, assign_boxes, visible_part
from drone.workflows.evaluated_images import EvaluatedImages, ImageFile


def with_boxes(evaluated: EvaluatedImages, source: Path) -> EvaluatedImages:
    """Returns an evaluation with the share of the evidence that is outside of boxes.

    Args:
        evaluated: Images, with the model's predictions.
        source: File of boxes; see `read_boxes`.

    Raises:
        DataError: The file cannot be read, no box is for any of the images, or one is outside of
            its image.
    """
    boxes = assign_boxes(read_boxes(source), [file.path for file in evaluated.files])
    positions = [at for at, file in enumerate(evaluated.files) if file.path in boxes]
    positions_M = np.array(positions, np.int64)
    labels_M = evaluated.predictions.labels_N[positions_M]
    maps_MKHW = evaluated.load_evidence(positions_M)
    found = outside_boxes(
        maps_MKHW[np.arange(len(positions_M)), labels_M],
        [_shares(boxes[file.path], file) for file in map(evaluated.files.__getitem__, positions)],
        [evaluated.predictions.classes[label] for label in labels_M],
    )
    if found is None:
        raise DataError(f"{source}: no image with a box has any evidence for its class.")
    facts = {**evaluated.facts, "boxes": f"{source}, on {len(positions)} images"}
    return replace(evaluated, outside_boxes=found, facts=facts)


def _shares(boxes: Sequence[Box], file: ImageFile) -> NDArray[np.float64]:
    """Returns boxes as shares of the sides of their image: left, top, right, bottom, (B, 4)."""
    size = (file.width, file.height)
    parts_B4 = np.array([visible_part(box, *size) for box in boxes])
    shares_B4: NDArray[np.float64] = parts_B4 / (size * 2)
    return shares_B4
