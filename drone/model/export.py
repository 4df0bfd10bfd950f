"""Exports a trained model to ONNX: pixels in, probabilities, known scores and evidence maps out.

Its settings are in the metadata.
"""

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

from drone.model.evidence import evidence_maps
from drone.model.folding import merge_batchnorm
from drone.model.head import NUM_FEATURES
from drone.model.inference import over_mirrored, probabilities_of, with_mirrored
from drone.model.known_score import KnownScore, accepting_all
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD, Classifier, pooled
from drone.model.onnx_mixed import join_sizes
from drone.model.resizer import SIDES_PX, Resizer

INPUT = "pixels"
"""Name of the exported model's only input."""

_OUTPUTS = ("probabilities", "known", "evidence")
_OPSET = 20

_MAX_BATCH_SIZE = 4096


class _Normalise(nn.Module):
    """Turns pixels into normalised images, followed by their mirror images if `mirrored`."""

    def __init__(self, mirrored: bool) -> None:
        super().__init__()
        self.mirrored = mirrored
        shape = (1, 3, 1, 1)
        self.mean: Tensor
        self.scale: Tensor
        # On the scale 0 to 255, which saves dividing all pixels by 255 first.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(shape) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(IMAGENET_STD).view(shape) * 255))

    def forward(self, pixels: Tensor) -> Tensor:
        images_NCHW = (pixels.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        return with_mirrored(images_NCHW) if self.mirrored else images_NCHW


class _Outputs(nn.Module):
    """Turns normalised images, and their mirror images, into all outputs of the exported model."""

    def __init__(self, model: Classifier, known: KnownScore) -> None:
        super().__init__()
        self.model, self.known = model, known

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        activations_MCHW = self.model.last_activations(images_NCHW)
        features_MF = pooled(activations_MCHW)
        known_N = self.known(over_mirrored(self.model, features_MF))
        evidence_NKHW = evidence_maps(self.model, activations_MCHW, features_MF)
        return probabilities_of(self.model, features_MF), known_N, evidence_NKHW


class Served(nn.Module):
    """A trained model with the interface it is served with: uint8 pixels in, probabilities out."""

    def __init__(self, model: Classifier) -> None:
        """Wraps a trained model."""
        super().__init__()
        self.normalise = _Normalise(model.config.test_time_flip)
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns probabilities, (N, K) float32.

        Args:
            pixels: Images of one size, (N, side, side, 3) uint8.
        """
        return probabilities_of(self.model, self._features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """Returns the features that the known score is computed from, (N, 1280) float32."""
        return over_mirrored(self.model, self._features(pixels))

    def _features(self, pixels: Tensor) -> Tensor:
        return self.model.pooled_features(self.model.stem(self.normalise(pixels)))


def to_onnx(
    model: Classifier,
    target: Path,
    side_px: int,
    metadata: Mapping[str, str],
    known: KnownScore | None = None,
) -> None:
    """Writes the model as one ONNX file that takes batches of any size.

    A multi-resolution model takes images of any of its sides, one side in a batch; the metadata
    lists them as "sides_px".

    Args:
        model: Trained model, on the CPU.
        target: File to write.
        side_px: Side of the images; for a multi-resolution model that of the smallest ones.
        metadata: Metadata to store in the file.
        known: Known score of the model; None accepts every image.
    """
    metadata = dict(metadata)
    # A copy, since merging BatchNorm changes the model.
    served = Served(copy.deepcopy(model)).eval()
    merge_batchnorm(served)
    outputs = _Outputs(served.model, known or accepting_all(NUM_FEATURES))
    if model.resizer is None:
        batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH_SIZE)
        network = nn.Sequential(served.normalise, outputs)
        exported = _graph(network, _example_pixels(side_px), {0: batch}, INPUT, *_OUTPUTS)
    else:
        exported = _mixed_graph(served, outputs, model.resizer, side_px)
        metadata["sides_px"] = json.dumps(SIDES_PX)
    onnx.helper.set_model_props(exported, metadata)
    onnx.checker.check_model(exported)
    onnx.save(exported, target)


def _mixed_graph(
    served: Served, outputs: _Outputs, resizer: Resizer, side_px: int
) -> onnx.ModelProto:
    """Exports one graph for all sides."""
    outputs.model.resizer = None  # Which the graph applies before.
    copies = 2 if served.model.config.test_time_flip else 1
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH_SIZE)
    # A multiple of the batch: its two halves are averaged, and torch.export rejects odd counts.
    image_batch = copies * batch if copies > 1 else batch
    # From 2, since torch.export treats sizes of 0 and 1 as constants.
    height, width = (torch.export.Dim(name, min=2, max=2**14) for name in ("height", "width"))

    def example_images(side: int) -> Tensor:
        return torch.zeros((3 * copies, 3, side, side))

    return join_sizes(
        _graph(
            served.normalise,
            _example_pixels(side_px),
            {0: batch, 1: height, 2: width},
            INPUT,
            "images",
        ),
        {
            side: _graph(resizer, example_images(side), {0: image_batch}, "larger", "smaller")
            for side in SIDES_PX[1:]
        },
        _graph(
            outputs,
            example_images(side_px),
            {0: image_batch},
            "images",
            *_OUTPUTS,
        ),
    )


def _example_pixels(side_px: int) -> Tensor:
    # Of three images: torch.export would take a batch of one for a constant.
    return torch.zeros((3, side_px, side_px, 3), dtype=torch.uint8)


def _graph(
    module: nn.Module,
    example: Tensor,
    dynamic_shapes: dict[int, Any],
    input_name: str,
    *output_names: str,
) -> onnx.ModelProto:
    """Exports a module of one input as an ONNX graph."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch.onnx warns about its own internals, which nobody here can change.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=(dynamic_shapes,),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def read_metadata(file: Path) -> dict[str, str]:
    """Reads the metadata of an ONNX file."""
    return _metadata(onnx.load(file))


def add_metadata(file: Path, metadata: Mapping[str, str]) -> None:
    """Adds entries to the metadata of an ONNX file; those of the same name are replaced."""
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {**_metadata(model), **metadata})
    onnx.save(model, file)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {item.key: item.value for item in model.metadata_props}
