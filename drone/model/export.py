"""A trained model as ONNX: pixels in, probabilities out, with all that serving must know inside."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from drone.model.folding import set_folding
from drone.model.inference import probabilities
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD, Classifier

INPUT, OUTPUT = "pixels", "probabilities"
OPSET = 20


class Served(nn.Module):
    """The model as it answers: uint8 pixels in, probabilities out."""

    def __init__(self, model: Classifier) -> None:
        """Wraps a trained model."""
        super().__init__()
        self.model = model
        shape = (1, 3, 1, 1)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(shape) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(IMAGENET_STD).view(shape) * 255))

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities, (N, K) float32, of pixels (N, side_px, side_px, 3) uint8."""
        images_NCHW = pixels.permute(0, 3, 1, 2).float()
        return probabilities(self.model, (images_NCHW - self.mean) * self.scale)


def to_onnx(model: Classifier, target: Path, side_px: int, metadata: Mapping[str, str]) -> None:
    """Writes the model as one ONNX file with a batch of any size.

    Args:
        model: trained; on the processor.
        target: the file.
        side_px: of the pictures.
        metadata: goes into the file's properties.
    """
    served = Served(model).eval()
    set_folding(served, False)
    example = torch.zeros((3, side_px, side_px, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the exporter's own making.
        program = torch.onnx.export(
            served,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"pixels": {0: batch}},
            verbose=False,
        )
    set_folding(served, True)
    assert program is not None
    program.save(target, external_data=False)
    exported = onnx.load(target)
    onnx.helper.set_model_props(exported, dict(metadata))
    onnx.checker.check_model(exported)
    onnx.save(exported, target)


def facts_of(file: Path) -> dict[str, str]:
    """What a model's file says of itself."""
    return _facts(onnx.load(file))


def add_facts(file: Path, facts: Mapping[str, str]) -> None:
    """Adds to what a model's file says of itself."""
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {**_facts(model), **facts})
    onnx.save(model, file)


def _facts(model: onnx.ModelProto) -> dict[str, str]:
    return {item.key: item.value for item in model.metadata_props}
