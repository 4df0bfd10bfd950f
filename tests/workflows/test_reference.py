"""The reference for drift: what it is made from, and that it travels with the model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drone.data.dataset import Dataset
from drone.presets import get_preset
from drone.serving.drift import Reference
from drone.serving.predictor import Predictor
from drone.training.config import CalibrationConfig, TrainConfig
from drone.workflows.model_logging import add_reference
from tests.conftest import RunJob
from tests.faults.tracked_model import TrackedModel, call, stored, tracked, write_linear_of

__all__ = ["call", "stored", "tracked"]  # Fixtures.

SMOKE = get_preset("smoke")
ON_BOTH = replace(
    SMOKE,
    train_on="train+validation",
    calibration=CalibrationConfig(temperature=1.0, unsure_below=0.5),
)


@pytest.mark.parametrize(("config", "split"), [(SMOKE, "validation"), (ON_BOTH, "test")])
def test_it_is_of_images_that_the_model_was_not_trained_on(
    config: TrainConfig, split: str, dataset: Dataset, tmp_path: Path
) -> None:
    write_linear_of(tmp_path / "model.onnx", dataset, temperature="2.0")
    predictor = Predictor(tmp_path / "model.onnx")
    images = dataset.split(split)
    each = [
        predictor.predict_one(images.gather(np.array([position]))[0])
        for position in range(len(images))
    ]
    add_reference(tmp_path / "model.onnx", config, dataset)
    found = Predictor(tmp_path / "model.onnx").info.reference
    assert found == Reference.of(each, len(dataset.classes))
    assert found is not None and found.num_answers == len(images)


def test_an_export_has_the_reference_in_its_file_and_not_in_its_description(
    call: RunJob, tracked: TrackedModel, dataset: Dataset
) -> None:
    args = ["export", "--run", "linear", "--out", "out", "--unchecked"]
    assert call(*args).code == 0
    found = Predictor(tracked.folder / "out" / "model.onnx").info.reference
    assert found is not None and found.num_answers == len(dataset.split("validation"))
    assert "reference" not in json.loads((tracked.folder / "out" / "model.json").read_text())
