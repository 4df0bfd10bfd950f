"""A model that is made in milliseconds."""

from pathlib import Path

import pytest

from drone.labels import CLASSES
from drone.serving.predictor import class_metadata
from drone.serving.preprocess import Preprocessing
from tests.linear_model import random_weights, write_linear


@pytest.fixture
def small_export(tmp_path: Path) -> Path:
    settings = Preprocessing(side_px=64)
    metadata = {**class_metadata(CLASSES), "preprocessing": settings.to_json()}
    return write_linear(tmp_path / "model.onnx", 64, random_weights(64, 4), metadata)
