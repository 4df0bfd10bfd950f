"""Compute and memory costs of MobileNet_V2's blocks."""

from functools import cache

import torch
from torch import nn
from torchvision.models import mobilenet_v2


@cache
def forward_macs(side_px: int) -> tuple[int, ...]:
    """Returns the multiply-accumulates of each block's forward pass for one image."""
    # The meta device gives shapes without allocating or computing anything.
    with torch.device("meta"):
        features = mobilenet_v2().features.eval()
        image = torch.empty(1, 3, side_px, side_px)
    block_macs = []
    for block in features:
        layer_macs: list[int] = []
        hooks = [
            layer.register_forward_hook(
                lambda layer, _, output: layer_macs.append(  # noqa: B023
                    output.numel() * layer.weight[0].numel()
                )
            )
            for layer in block.modules()
            if isinstance(layer, nn.Conv2d)
        ]
        image = block(image)
        for hook in hooks:
            hook.remove()
        block_macs.append(sum(layer_macs))
    return tuple(block_macs)


@cache
def activation_size(cut: int, side_px: int) -> int:
    """Returns the number of values that one image has at a cut; pooled after the last block."""
    with torch.device("meta"):
        features = mobilenet_v2().features[:cut].eval()
        output = features(torch.empty(1, 3, side_px, side_px))
    return int(output.shape[1] if cut == len(forward_macs(side_px)) else output.numel())


def frozen_cost_fraction(cut: int, side_px: int) -> float:
    """Returns the fraction of a training step spent in the frozen blocks below a cut, 0 to 1.

    A trainable block costs three times its forward pass: forward, and backward for its inputs and
    for its weights.
    """
    macs = forward_macs(side_px)
    frozen, trainable = sum(macs[:cut]), 3 * sum(macs[cut:])
    return frozen / (frozen + trainable)
