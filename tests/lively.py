"""Models of random weights whose answers are worth comparing."""

from pathlib import Path

import torch

from drone.labels import CLASSES
from drone.model import export, mobilenet
from drone.model.batchnorm import estimate_statistics
from drone.model.config import ModelConfig
from drone.serving.predictor import class_metadata
from drone.serving.preprocess import Preprocessing


def make_lively(model: mobilenet.Classifier) -> None:
    """Gives random weights under which the answer depends on the image and on the resizer."""
    torch.manual_seed(1)
    assert model.resizer is not None
    with torch.no_grad():
        for layer in model.resizer.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.normal_(std=0.3)
    # Noise and plain images of two sizes.
    samples = [
        brightness + spread * torch.randn(2, 3, side, side)
        for side in (224, 448)
        for brightness, spread in ((-1.0, 0.2), (1.0, 0.2), (0.0, 1.2))
    ]
    with torch.no_grad():
        small = torch.cat([model.resizer(images) for images in samples])
        estimate_statistics(model.features, [small])
        last = model.head[-1]
        last.weight.normal_()
        last.bias.zero_()
        # Each class gets the same mean and spread over them.
        logits_NK = torch.cat([model.eval()(images) for images in samples])
        scale_K = 1 / logits_NK.std(0)
        last.weight.mul_(scale_K[:, None])
        last.bias.copy_(-logits_NK.mean(0) * scale_K)


def export_mixed(target: Path) -> None:
    """Exports a model of mixed resolutions."""
    model = mobilenet.build(ModelConfig(resizer="stack", test_time_flip=False), 4, 0, None)
    make_lively(model)
    facts = {**class_metadata(CLASSES), "preprocessing": Preprocessing().to_json()}
    export.to_onnx(model.eval(), target, 224, facts)
