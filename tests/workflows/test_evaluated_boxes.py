"""An evaluation with boxes around the objects."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drone.data.dataset import Dataset
from drone.errors import DataError
from drone.evaluation.batch_inference import no_progress
from drone.inference.box_files import read_boxes
from drone.serving.predictor import Predictor
from drone.tracking import runs
from drone.workflows.evaluated_boxes import with_boxes
from drone.workflows.evaluated_images import EvaluatedImages, predict_test_split
from drone.workflows.evaluation import evaluate
from drone.workflows.requests import EvaluateRequest
from tests.faults.tracked_model import TrackedModel, stored, tracked

__all__ = ["stored", "tracked"]  # Fixtures.

pytestmark = pytest.mark.slow


def write_boxes(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(["path,x,y,w,h", *lines]))
    return file


def quoted(row: dict[str, Any]) -> str:
    """The path of an image, which may hold commas, as a CSV has it."""
    return '"' + str(row["path"]).replace('"', '""') + '"'


@pytest.fixture
def evaluated(tracked: TrackedModel) -> EvaluatedImages:
    """The test split with evidence in the upper left of each image."""
    run = runs.find_run(tracked.run_id)
    images = predict_test_split(run, Predictor(tracked.onnx), None, no_progress)

    def load_evidence(positions_M: np.ndarray) -> np.ndarray:
        maps_MKHW = np.full((len(positions_M), len(images.predictions.classes), 4, 4), -1.0)
        maps_MKHW[:, :, 0, 0] = 1
        return maps_MKHW

    return replace(images, load_evidence=load_evidence)


def test_boxes_are_in_pixels_of_the_original_images(
    evaluated: EvaluatedImages, dataset: Dataset, tmp_path: Path
) -> None:
    first, second, third = dataset.rows("test").to_dict("records")[:3]
    lines = [
        # The left quarter, the right half, and both.
        f"{quoted(first)},0,0,{first['width'] / 4},{first['height']}",
        f"{quoted(second)},{second['width'] / 2},0,{second['width'] / 2},{second['height']}",
        f"{quoted(third)},0,0,{third['width'] / 4},{third['height']}",
        f"{quoted(third)},{third['width'] / 2},0,{third['width'] / 2},{third['height']}",
        "elsewhere/other.png,0,0,1,1",
    ]
    boxes = read_boxes(write_boxes(tmp_path / "boxes.csv", *lines))
    found = with_boxes(evaluated, boxes).outside_boxes
    assert found is not None and found.overall.images == 3
    assert found.overall.evidence == pytest.approx(1 / 3)
    assert found.overall.area == pytest.approx((3 / 4 + 1 / 2 + 1 / 4) / 3)


def test_boxes_of_other_images_are_an_error(evaluated: EvaluatedImages, tmp_path: Path) -> None:
    boxes = write_boxes(tmp_path / "boxes.csv", "elsewhere/other.png,0,0,1,1")
    with pytest.raises(DataError, match="line 2: the box is for elsewhere/other.png"):
        with_boxes(evaluated, read_boxes(boxes))


def test_the_report_of_an_evaluation_has_the_share(
    tracked: TrackedModel, dataset: Dataset, tmp_path: Path
) -> None:
    lines = [f"{quoted(row)},0,0,3,3" for row in dataset.rows("test").to_dict("records")]
    boxes = write_boxes(tmp_path / "boxes.csv", *lines)
    result = evaluate(EvaluateRequest(run=tracked.run_id, boxes=boxes, out=tmp_path / "reports"))
    metrics = json.loads((result.report.parent / "metrics.json").read_text())
    assert result.evaluated.outside_boxes is not None
    assert metrics["outside_boxes"] == result.evaluated.outside_boxes.as_dict()
    # The grid of the linear model has one cell, which every box touches.
    assert metrics["outside_boxes"]["evidence"] == 0
    assert "Evidence outside of the boxes" in result.report.read_text()
