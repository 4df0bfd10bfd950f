"""Small exported models whose predictions differ from image to image."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from drone.labels import CLASSES
from drone.model import export, mobilenet
from drone.model.batchnorm import estimate_statistics
from drone.model.config import ModelConfig
from drone.serving.preprocess import Preprocessing
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
    metadata = {"classes": json.dumps(CLASSES), "preprocessing": SETTINGS.to_json(), "version": "7"}
    export.to_onnx(model, target, SETTINGS.side_px, metadata)
    return target


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model of all pixels, made without torch and in milliseconds."""
    weights = np.random.default_rng(0).normal(0, 1e-4, (SIDE * SIDE * 3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 4])
    constants = [numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph(nodes, "linear", [pixels], [out], constants)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    settings = Preprocessing(side_px=SIDE).to_json()
    metadata = {"classes": json.dumps(CLASSES), "preprocessing": settings, "version": "7"}
    helper.set_model_props(model, metadata)
    target = tmp_path_factory.mktemp("linear") / "model.onnx"
    onnx.save(model, target)
    return target


@pytest.fixture(scope="module")
def function(linear: Path) -> Iterator[ModuleType]:
    """The module of the Lambda function, which loads its model at import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRONE_MODEL", str(linear))
        from drone.serving import lambda_handler

        yield lambda_handler
