"""The copy of an exported model in 8-bit integers."""

import logging
from pathlib import Path

import numpy as np
import pytest

from drone.labels import CLASSES
from drone.model import export, mobilenet, quantization
from drone.model.config import ModelConfig
from drone.serving.predictor import class_metadata
from drone.serving.preprocess import Preprocessing

SIDE_PX = 64


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "model.onnx"
    model = mobilenet.build(ModelConfig(), len(CLASSES), seed=0, backbone=None).eval()
    metadata = {**class_metadata(CLASSES), "preprocessing": Preprocessing().to_json()}
    export.to_onnx(model, target, SIDE_PX, metadata)
    return target


def test_quantization_leaves_the_logging_of_its_process_alone(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "model.int8.onnx"
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE_PX, SIDE_PX, 3), np.uint8)
    quantization.to_int8(exported, target, [pixels])
    assert export.read_metadata(target)["precision"] == "int8"
    assert target.stat().st_size < 0.5 * exported.stat().st_size
    # The advice of onnxruntime is dropped; what others log afterwards is not.
    assert [record for record in caplog.records if record.name == "root"] == []
    logging.getLogger().warning("by the root logger")
    logging.getLogger("drone.keeping").warning("by another")
    assert caplog.messages == ["by the root logger", "by another"]
