"""From normalised pictures to probabilities, as validation and the exported model do it."""

import torch
from torch import Tensor

from drone.model.mobilenet import Classifier


def probabilities(model: Classifier, images_NCHW: Tensor) -> Tensor:
    """Class probabilities, (N, K) float32; the mean with the mirror image's if so configured."""
    probs_NK = torch.softmax(model(images_NCHW).float(), dim=1)
    if not model.config.flip_test:
        return probs_NK
    mirrored_NK = torch.softmax(model(images_NCHW.flip(3)).float(), dim=1)
    return (probs_NK + mirrored_NK) / 2
