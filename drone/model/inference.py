"""Class probabilities and flip augmentation, shared by validation and the exported model."""

import torch
from torch import Tensor

from drone.model.mobilenet import Classifier


def with_mirrored(images_NCHW: Tensor) -> Tensor:
    """Returns the images followed by their mirror images, (2N, C, H, W)."""
    return torch.cat([images_NCHW, images_NCHW.flip(3)])


def probabilities_at_cut(model: Classifier, activations: Tensor) -> Tensor:
    """Returns class probabilities, (N, K) float32, from the activations at the cut.

    Args:
        model: Its blocks above the cut and its head are used.
        activations: Output of `Classifier.stem` for N images, followed by that for their mirror
            images if the model has `test_time_flip`.
    """
    return probabilities_of(model, model.pooled_features(activations))


def probabilities_of(model: Classifier, features_MF: Tensor) -> Tensor:
    """Returns class probabilities, (N, K) float32, from the output of `pooled_features`."""
    # softmax also holds for the original's head: of log-probabilities it is their exponential.
    return over_mirrored(model, torch.softmax(model.head(features_MF).float(), dim=1))


def over_mirrored(model: Classifier, values_M: Tensor) -> Tensor:
    """Returns the means of N images and their mirror images, (N, ...)."""
    if not model.config.test_time_flip:
        return values_M
    count = values_M.shape[0] // 2
    return (values_M[:count] + values_M[count:]) / 2
