"""From normalised pictures to probabilities, as validation and the exported model do it."""

import torch
from torch import Tensor

from drone.model.mobilenet import Classifier


def probabilities(model: Classifier, images_NCHW: Tensor) -> Tensor:
    """Class probabilities, (N, K) float32; the mean with the mirror image's if so configured."""
    if not model.config.flip_test:
        return torch.softmax(model(images_NCHW).float(), dim=1)
    both = torch.cat([images_NCHW, images_NCHW.flip(3)])
    probs_NK = torch.softmax(model(both).float(), dim=1)
    count = images_NCHW.shape[0]
    return (probs_NK[:count] + probs_NK[count:]) / 2
