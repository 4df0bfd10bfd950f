"""Fits the known score of a trained model; see `drone.model.known_score`."""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from drone.data.augment_config import AugmentConfig
from drone.data.conditions import REFERENCE_PX, reduced
from drone.data.dataset import Dataset
from drone.data.images import Images
from drone.evaluation.batch_inference import predict_in_batches
from drone.model.export import Served
from drone.model.known_score import KnownScore
from drone.model.mobilenet import Classifier

_Sampled = TypeVar("_Sampled", bound=Images)

ACCEPTED = 0.95
"""Share of validation images whose score reaches the threshold."""

_MEDIAN_SCORE = 0.9
"""Score of the median validation image."""

_MAX_IMAGES = 2000
"""Images of a split that are looked at: more would change the statistics less than chance does."""

_NEAREST_WEIGHT = 0.5
"""Weight of the similarity to the classes beside the score against negatives, both in standard
deviations over validation images."""

_WIDTHS = (1.2, 2.5)
"""Width of the views with more around the object, in widths of an image."""

_INVERSE_REGULARISATION = 10.0
"""Of the logistic regression against negatives; 1 to 1000 rank alike."""


def fit_known_score(
    model: Classifier, dataset: Dataset, augment: AugmentConfig | None = None
) -> KnownScore:
    """Fits the known score on training images, and its threshold on validation images.

    That validation images may have been trained on too does not matter: the score ranks images of
    either kind alike (docs/none-of-these.md).

    Args:
        model: A trained model, on the CPU.
        dataset: What it was trained on, read at the sizes that it takes.
        augment: How. A model that was trained on objects far away is to know these too, so each
            image counts three times: as it is, as from far away, and so with more around it, as
            boxes are cut out.
    """
    loaders = [_as_it_is]
    if augment and augment.distance_p * augment.strength:
        loaders += [partial(_far_away, augment, widths) for widths in ((1.0, 1.0), _WIDTHS)]

    def features(images: Images) -> NDArray[np.float64]:
        return np.concatenate([_features(model, images, load) for load in loaders])

    train, validation = (_sample(dataset.split(name)) for name in ("train", "validation"))
    train_NF, validation_NF = features(train), features(validation)
    # Means of their own for each kind of views, since their features differ.
    labels_N = np.concatenate(
        [train.labels_N + number * len(dataset.classes) for number in range(len(loaders))]
    )
    means_KF = _class_means(train_NF, labels_N)
    nearest_N = (validation_NF @ means_KF.T).max(axis=1)
    negatives = _sample(dataset.negatives("train"))
    weights_F = np.zeros(train_NF.shape[1])
    if len(negatives):
        weights_F = _weights_against(features(negatives), train_NF)
        # Brings both scores to standard deviations, in units of the first one.
        spreads = nearest_N.std(), (validation_NF @ weights_F).std()
        weights_F *= spreads[0] / max(spreads[1], 1e-9) / _NEAREST_WEIGHT
    sums_N = nearest_N + validation_NF @ weights_F
    # The share is accepted of each kind of views.
    threshold = np.quantile(sums_N.reshape(len(loaders), -1), 1 - ACCEPTED, axis=1).min()
    median = np.median(sums_N)
    scale = math.log(_MEDIAN_SCORE / (1 - _MEDIAN_SCORE)) / max(median - threshold, 1e-6)
    return KnownScore(
        torch.from_numpy(means_KF).float(),
        torch.from_numpy(weights_F).float(),
        float(scale),
        float(threshold),
    )


def _sample(split: _Sampled) -> _Sampled:
    """Returns a fixed choice of the images of a split, if there are many."""
    chosen_P = np.random.default_rng(0).permutation(len(split))[:_MAX_IMAGES]
    return split.subset(split.name, np.sort(chosen_P))


def _as_it_is(images: Images, positions_B: NDArray[np.int64]) -> NDArray[np.uint8]:
    return images.gather(positions_B)


def _far_away(
    augment: AugmentConfig,
    widths: tuple[float, float],
    images: Images,
    positions_B: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Returns images as from far away, each with fixed factors of its own.

    Args:
        augment: Has the sides that images are reduced to, as in training.
        widths: Range of the width of the view, in widths of the image; what is beyond the image is
            its reflection.
        images: Images of a split.
        positions_B: Which of them.
    """
    sides = np.log([augment.distance_min, augment.distance_max])
    views = []
    for position, image in zip(positions_B, images.gather(positions_B), strict=True):
        rng = np.random.default_rng(int(position))
        side = REFERENCE_PX * math.exp(rng.uniform(*sides))
        wide = _widened(image, math.exp(rng.uniform(*np.log(widths))))
        views.append(reduced(wide, side, rng))
    return np.stack(views)


def _widened(image_HWC: NDArray[np.uint8], width: float) -> NDArray[np.uint8]:
    """Returns a square image with more around it, in the same size."""
    side_px = image_HWC.shape[0]
    small_px = round(side_px / width)
    if small_px == side_px:
        return image_HWC
    small = cv2.resize(image_HWC, (small_px, small_px), interpolation=cv2.INTER_AREA)
    before, both = (side_px - small_px) // 2, side_px - small_px
    edges = (before, both - before, before, both - before)
    return np.asarray(cv2.copyMakeBorder(small, *edges, cv2.BORDER_REFLECT))


def _features(
    model: Classifier,
    images: Images,
    load: Callable[[Images, NDArray[np.int64]], NDArray[np.uint8]],
) -> NDArray[np.float64]:
    """Returns the features of images, (N, 1280), each of length 1."""
    served = Served(model).eval()

    @torch.no_grad()
    def features(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        features_NF: NDArray[np.float32] = served.features(torch.from_numpy(pixels_NHWC)).numpy()
        return features_NF

    return _unit(
        predict_in_batches(features, images.sides_N, partial(load, images)).astype(np.float64)
    )


def _unit(vectors_NF: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths_N: NDArray[np.float64] = np.linalg.norm(vectors_NF, axis=1)
    return vectors_NF / np.maximum(lengths_N, 1e-12)[:, None]


def _class_means(unit_NF: NDArray[np.float64], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    # Of the classes that have training images.
    present = np.unique(labels_N)
    return _unit(np.stack([unit_NF[labels_N == index].mean(axis=0) for index in present]))


def _weights_against(
    negatives_NF: NDArray[np.float64], known_NF: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the weights of a logistic regression of known images against negatives, (F,)."""
    unit_MF = np.concatenate([known_NF, negatives_NF])
    is_known_M = np.arange(len(unit_MF)) < len(known_NF)
    # One scale for all features: their spreads tell which of them matter.
    spread = math.sqrt(known_NF.var(axis=0).sum())
    regression = LogisticRegression(
        C=_INVERSE_REGULARISATION, class_weight="balanced", max_iter=3000
    )
    regression.fit((unit_MF - known_NF.mean(axis=0)) / spread, is_known_M)
    weights_F: NDArray[np.float64] = regression.coef_[0] / spread
    return weights_F
