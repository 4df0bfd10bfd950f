"""Evidence maps: how much each cell of the last feature map speaks for each class.

Of a linear head they are the class activation maps of Zhou et al. 2016, "Learning Deep Features for
Discriminative Localization"; of any head they are HiResCAM (Draelos and Carin 2020, "Use HiResCAM
instead of Grad-CAM for faithful explanations of convolutional neural networks"): the gradient of
the class's logit with respect to the feature map times the feature map, summed over the channels.
Behind the feature map there are only means, linear layers and ReLU, so that gradient is a product
of matrices. It needs no backward pass, which ONNX does not have.

Axes: N images, M images and their mirror images, C channels, K classes, H and W cells, P of both.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drone.model.mobilenet import Classifier


def evidence_maps(model: Classifier, activations_MCHW: Tensor, features_MC: Tensor) -> Tensor:
    """Returns the evidence maps of N images, (N, K, H, W) float32.

    For a linear head, the cells of a map sum to the logit less its bias. With `test_time_flip` a
    map is the mean of those of the image and of its mirror image, flipped back.

    Args:
        model: The classifier.
        activations_MCHW: Output of `Classifier.last_activations` for N images, followed by that for
            their mirror images if the model has `test_time_flip`.
        features_MC: The activations averaged over the cells.
    """
    height, width = activations_MCHW.shape[2:]
    gradients_MKC = logit_gradients(model.head, features_MC)
    maps_MKP = torch.matmul(gradients_MKC, activations_MCHW.flatten(2))
    maps_MKHW = maps_MKP.reshape(*maps_MKP.shape[:2], height, width) / (height * width)
    if not model.config.test_time_flip:
        return maps_MKHW
    count = maps_MKHW.shape[0] // 2
    return (maps_MKHW[:count] + maps_MKHW[count:].flip(3)) / 2


def logit_gradients(head: nn.Sequential, features_MC: Tensor) -> Tensor:
    """Returns the gradients of the logits with respect to a head's input, (M or 1, K, C).

    They are the same for all images, (1, K, C), if the head is linear.

    Args:
        head: Head from `build_head`, in evaluation mode.
        features_MC: Its input.
    """
    # Dropout does nothing in evaluation; the logits are those before LogSoftmax.
    layers = [layer for layer in head if isinstance(layer, nn.Linear | nn.ReLU)]
    return _chain(layers, features_MC)


def _chain(layers: Sequence[nn.Module], inputs_MC: Tensor) -> Tensor:
    """Returns the gradients of the last layer's output by the chain rule, (M or 1, K, C)."""
    first, *rest = layers
    if isinstance(first, nn.Linear):
        if not rest:
            return first.weight[None]
        return torch.matmul(_chain(rest, first(inputs_MC)), first.weight)
    is_active_MC = (inputs_MC > 0).to(inputs_MC.dtype)
    return _chain(rest, first(inputs_MC)) * is_active_MC[:, None]
