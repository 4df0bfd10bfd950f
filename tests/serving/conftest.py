"""Small exported models whose predictions differ from image to image."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from drone.labels import CLASSES
from drone.model import export, mobilenet
from drone.model.batchnorm import estimate_statistics
from drone.model.config import ModelConfig
from drone.serving.predictor import class_metadata
from drone.serving.preprocess import Preprocessing
from tests.linear_model import random_weights, write_linear
from tests.serving.lambda_events import SIDE

SETTINGS = Preprocessing(side_px=64)


@pytest.fixture(scope="session")
def model() -> mobilenet.Classifier:
    model = mobilenet.build(ModelConfig(head_width=32), 4, seed=0, backbone=None).eval()
    # With the initial statistics every prediction would be the same.
    estimate_statistics(model.features, [torch.randn(32, 3, 64, 64)])
    return model


@pytest.fixture(scope="session")
def exported(model: mobilenet.Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "model.onnx"
    metadata = {**class_metadata(CLASSES), "preprocessing": SETTINGS.to_json(), "version": "7"}
    export.to_onnx(model, target, SETTINGS.side_px, metadata)
    return target


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model of all pixels, made without torch and in milliseconds."""
    metadata = {
        **class_metadata(CLASSES),
        "preprocessing": Preprocessing(side_px=SIDE).to_json(),
        "version": "7",
    }
    target = tmp_path_factory.mktemp("linear") / "model.onnx"
    return write_linear(target, SIDE, random_weights(SIDE, len(CLASSES)), metadata)


@pytest.fixture(scope="module")
def function(linear: Path) -> Iterator[ModuleType]:
    """The module of the Lambda function, which loads its model at import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRONE_MODEL", str(linear))
        from drone.serving import lambda_handler

        yield lambda_handler
