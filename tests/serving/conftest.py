"""A small exported model whose answers differ from picture to picture."""

import json
from pathlib import Path

import pytest
import torch

from drone.labels import CLASSES
from drone.model import export, mobilenet
from drone.model.batchnorm import estimate_statistics
from drone.model.config import ModelConfig
from drone.serving.preprocess import Preprocessing

SETTINGS = Preprocessing(side_px=64)


@pytest.fixture(scope="session")
def model() -> mobilenet.Classifier:
    model = mobilenet.build(ModelConfig(head_width=32), 4, seed=0, backbone=None).eval()
    # With statistics of no data every answer would be the same.
    estimate_statistics(model.features, [torch.randn(32, 3, 64, 64)])
    return model


@pytest.fixture(scope="session")
def exported(model: mobilenet.Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "model.onnx"
    facts = {"classes": json.dumps(CLASSES), "preprocessing": SETTINGS.to_json(), "version": "7"}
    export.to_onnx(model, target, SETTINGS.side_px, facts)
    return target
