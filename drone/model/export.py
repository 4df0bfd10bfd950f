"""A trained model as ONNX: pixels in, probabilities out, with all that serving must know inside."""

import copy
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from drone.model.folding import settle
from drone.model.inference import mirrored_too, probabilities_at_cut
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD, Classifier
from drone.model.onnx_mixed import join
from drone.model.resizer import Resizer, sides_px

INPUT, OUTPUT = "pixels", "probabilities"
OPSET = 20

_MOST = 4096
"""Pictures in a batch."""


class _Before(nn.Module):
    """From pixels to normalised pictures, and their mirror images if the model wants them."""

    def __init__(self, mirrored: bool) -> None:
        super().__init__()
        self.mirrored = mirrored
        shape = (1, 3, 1, 1)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(shape) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(IMAGENET_STD).view(shape) * 255))

    def forward(self, pixels: Tensor) -> Tensor:
        images_NCHW = (pixels.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        return mirrored_too(images_NCHW) if self.mirrored else images_NCHW


class _Behind(nn.Module):
    """From normalised pictures of 224 px, and their mirror images, to probabilities."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.resizer = None

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return probabilities_at_cut(self.model, self.model.stem(images_NCHW))


class Served(nn.Module):
    """The model as it answers: uint8 pixels in, probabilities out."""

    def __init__(self, model: Classifier) -> None:
        """Wraps a trained model."""
        super().__init__()
        self.before = _Before(model.config.flip_test)
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities, (N, K) float32, of pixels (N, side, side, 3) uint8 of one size."""
        return probabilities_at_cut(self.model, self.model.stem(self.before(pixels)))


def to_onnx(model: Classifier, target: Path, side_px: int, metadata: Mapping[str, str]) -> None:
    """Writes the model as one ONNX file with a batch of any size.

    A model of mixed resolutions takes pictures of any of its sizes, one size in a batch, and says
    in its properties which they are ("sides_px").

    Args:
        model: trained; on the processor.
        target: the file.
        side_px: of the pictures; of the smallest ones of a model of mixed resolutions.
        metadata: goes into the file's properties.
    """
    facts = dict(metadata)
    served = Served(copy.deepcopy(model)).eval()
    settle(served)
    if model.resizer is None:
        batch = torch.export.Dim("batch", min=1, max=_MOST)
        exported = _graph(served, _pixels(side_px), {0: batch}, INPUT, OUTPUT)
    else:
        exported = _mixed(served, model.resizer, side_px)
        facts["sides_px"] = json.dumps(sides_px())
    onnx.helper.set_model_props(exported, facts)
    onnx.checker.check_model(exported)
    onnx.save(exported, target)


def _mixed(served: Served, resizer: Resizer, side_px: int) -> onnx.ModelProto:
    """One graph for all sizes."""
    copies = 2 if served.model.config.flip_test else 1
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    pictures = copies * batch if copies > 1 else batch
    height, width = (torch.export.Dim(name, min=2, max=2**14) for name in ("height", "width"))

    def images(side: int) -> Tensor:
        return torch.zeros((3 * copies, 3, side, side))

    return join(
        _graph(served.before, _pixels(side_px), {0: batch, 1: height, 2: width}, INPUT, "pictures"),
        {
            side: _graph(resizer, images(side), {0: pictures}, "larger", "smaller")
            for side in sides_px()[1:]
        },
        _graph(_Behind(served.model), images(side_px), {0: pictures}, "pictures", OUTPUT),
    )


def _pixels(side_px: int) -> Tensor:
    return torch.zeros((3, side_px, side_px, 3), dtype=torch.uint8)


def _graph(
    module: nn.Module, example: Tensor, dynamic: dict[int, Any], takes: str, gives: str
) -> onnx.ModelProto:
    """A module of one input and one output as an ONNX graph."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the exporter's own making.
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[takes],
            output_names=[gives],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


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
