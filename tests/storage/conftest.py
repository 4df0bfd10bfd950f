"""A model that is made in milliseconds."""

import json
from pathlib import Path

import pytest

from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from tests.linear_model import random_weights, write_linear


@pytest.fixture
def small_export(tmp_path: Path) -> Path:
    settings = Preprocessing(side_px=64)
    metadata = {"classes": json.dumps(CLASSES), "preprocessing": settings.to_json()}
    return write_linear(tmp_path / "model.onnx", 64, random_weights(64, 4), metadata)
