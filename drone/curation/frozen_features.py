"""Frozen features of the kept images of a data set: what a pretrained backbone sees in them.

Axes: N images, P of them, D features, H and W cells of the last feature map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from drone.data.augmentation import normalise
from drone.data.dataset import SPLITS, Dataset
from drone.evaluation.batch_inference import LoadPixels, Track, predict_in_batches
from drone.model.config import ModelConfig
from drone.model.inference import with_mirrored
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD, Classifier, build
from drone.model.weights import Weights


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of N images, with their labels and groups."""

    features_ND: NDArray[np.float32]
    """Pooled backbone features, averaged over each image and its mirror; D is 1280."""

    labels_N: NDArray[np.int64]
    """Class indices."""

    groups_N: Sequence[str]
    """Group of each image; near duplicates share one."""

    classes: Sequence[str]
    """Class names in the order of their indices."""

    rows: pd.DataFrame
    """Rows of the manifest, in the order of the images."""


def compute(
    dataset: Dataset, weights: Weights, track: Track, splits: Sequence[str] = SPLITS
) -> FrozenFeatures:
    """Computes the features of the kept images.

    Args:
        dataset: The data set.
        weights: Pretrained weights of the backbone.
        track: Shows progress.
        splits: Splits whose images are taken.
    """
    rows = dataset.packed_rows()
    rows = rows[rows["kept"] & rows["split"].isin(splits)].reset_index(drop=True)
    pixel_rows_N = rows["pixel_row"].to_numpy(np.int64, copy=True)
    features_ND = _pooled(
        np.full(len(rows), dataset.preprocessing.side_px),
        lambda positions_B: dataset.pixels(pixel_rows_N[positions_B]),
        weights,
        track,
    )
    index = {name: number for number, name in enumerate(dataset.classes)}
    labels_N = rows["class_name"].map(index).to_numpy(np.int64)
    return FrozenFeatures(features_ND, labels_N, list(rows["group"]), dataset.classes, rows)


def _pooled(
    sides_N: NDArray[np.int64], load_pixels: LoadPixels, weights: Weights, track: Track
) -> NDArray[np.float32]:
    """Returns pooled backbone features, (N, 1280), averaged over each image and its mirror."""
    model = _backbone(weights)

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        both = model.stem(_views(pixels_NHWC)).float()
        upright_ND, mirrored_ND = both.numpy().reshape(2, len(pixels_NHWC), -1)
        mean_ND: NDArray[np.float32] = (upright_ND + mirrored_ND) / 2
        return mean_ND

    return predict_in_batches(predict, sides_N, load_pixels, track, "computing features")


def _backbone(weights: Weights) -> Classifier:
    # Two classes because a head needs some; only the features are used.
    return build(ModelConfig(unfreeze_depth=0), 2, 0, weights.state()).eval()


def _views(pixels_NHWC: NDArray[np.uint8]) -> Tensor:
    """Returns normalised images followed by their mirror images, (2N, 3, side, side)."""
    mean_C, std_C = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    images = with_mirrored(normalise(torch.from_numpy(pixels_NHWC), mean_C, std_C))
    return images.contiguous(memory_format=torch.channels_last)


def evidence_maps(
    dataset: Dataset,
    pixel_rows_P: NDArray[np.int64],
    weights_PD: NDArray[np.float64],
    backbone: Weights,
    track: Track,
) -> Iterator[NDArray[np.float64]]:
    """Yields how much each cell of an image speaks for a class, (H, W), of any sign.

    It is the class activation map of a linear classifier on the features (Zhou et al. 2016).

    Args:
        dataset: The data set.
        pixel_rows_P: Rows of the images in the pixels.
        weights_PD: Weights of the features in the logit of each image's class.
        backbone: Pretrained weights, as for `compute`.
        track: Shows progress.
    """
    model = _backbone(backbone)
    for at in track(range(len(pixel_rows_P)), "computing evidence", len(pixel_rows_P)):
        with torch.no_grad():
            both = model.last_activations(_views(dataset.pixels(pixel_rows_P[at : at + 1])))
        mean_DHW = ((both[0] + both[1].flip(2)) / 2).numpy()
        map_HW: NDArray[np.float64] = np.tensordot(weights_PD[at], mean_DHW, 1)
        yield map_HW / map_HW.size
