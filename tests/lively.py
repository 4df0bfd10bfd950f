"""Models of random weights whose answers are worth comparing."""

import json
from pathlib import Path

import torch

from drone.labels import CLASSES
from drone.model import export, mobilenet
from drone.model.config import ModelConfig
from drone.serving.preprocess import Preprocessing


def make_lively(model: mobilenet.Classifier) -> None:
    """Gives random weights under which the answer depends on the picture and on the resizer."""
    torch.manual_seed(1)
    assert model.resizer is not None
    with torch.no_grad():
        for layer in model.resizer.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.normal_(std=0.3)
        for layer in model.features.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_var.fill_(0.05)
        model.head[-1].weight.normal_()
        model.head[-1].weight.div_(model(torch.randn(2, 3, 448, 448)).abs().mean())


def export_mixed(target: Path) -> None:
    """Exports a model of mixed resolutions."""
    model = mobilenet.build(ModelConfig(resizer="stack", flip_test=False), 4, 0, None)
    make_lively(model)
    facts = {"classes": json.dumps(CLASSES), "preprocessing": Preprocessing().to_json()}
    export.to_onnx(model.eval(), target, 224, facts)
