"""Frozen features of the kept images of a data set: what a pretrained backbone sees in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from drone.data.augmentation import normalise
from drone.data.dataset import Dataset
from drone.evaluation.batch_inference import LoadPixels, Track, predict_in_batches
from drone.model.config import ModelConfig
from drone.model.inference import with_mirrored
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD, build
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


def compute(dataset: Dataset, weights: Weights, track: Track) -> FrozenFeatures:
    """Computes the features of all kept images.

    Args:
        dataset: The data set.
        weights: Pretrained weights of the backbone.
        track: Shows progress.
    """
    rows = dataset.packed_rows()
    rows = rows[rows["kept"]].reset_index(drop=True)
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
    # Two classes because a head needs some; only the features are used.
    model = build(ModelConfig(unfreeze_depth=0), 2, 0, weights.state()).eval()
    mean_C, std_C = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = with_mirrored(normalise(torch.from_numpy(pixels_NHWC), mean_C, std_C))
        both = model.stem(images.contiguous(memory_format=torch.channels_last)).float()
        upright_ND, mirrored_ND = both.numpy().reshape(2, len(pixels_NHWC), -1)
        mean_ND: NDArray[np.float32] = (upright_ND + mirrored_ND) / 2
        return mean_ND

    return predict_in_batches(predict, sides_N, load_pixels, track, "computing features")
