"""From normalised pictures to probabilities, as validation and the exported model do it."""

import torch
from torch import Tensor

from drone.model.mobilenet import Classifier


def mirrored_too(images_NCHW: Tensor) -> Tensor:
    """The pictures, then their mirror images."""
    return torch.cat([images_NCHW, images_NCHW.flip(3)])


def probabilities_at_cut(model: Classifier, activations: Tensor) -> Tensor:
    """Class probabilities, (N, K) float32, from the activations at the cut.

    Args:
        model: of which the blocks above the cut are used.
        activations: of N pictures, then of their mirror images if the model asks for both.
    """
    probs_NK = torch.softmax(model.tail(activations).float(), dim=1)
    if not model.config.flip_test:
        return probs_NK
    count = activations.shape[0] // 2
    return (probs_NK[:count] + probs_NK[count:]) / 2
