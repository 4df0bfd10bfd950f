"""What the network's blocks cost."""

from functools import cache

import torch
from torch import nn
from torchvision.models import mobilenet_v2


@cache
def forward_macs(side_px: int) -> tuple[int, ...]:
    """Multiplications of each block of MobileNet_V2's features, forward, for one picture."""
    with torch.device("meta"):
        features = mobilenet_v2().features.eval()
        picture = torch.empty(1, 3, side_px, side_px)
    counts = []
    for block in features:
        found: list[int] = []
        hooks = [
            layer.register_forward_hook(
                lambda layer, _, output: found.append(  # noqa: B023
                    output.numel() * layer.weight[0].numel()
                )
            )
            for layer in block.modules()
            if isinstance(layer, nn.Conv2d)
        ]
        picture = block(picture)
        for hook in hooks:
            hook.remove()
        counts.append(sum(found))
    return tuple(counts)


@cache
def values_at(cut: int, side_px: int) -> int:
    """Numbers that are kept of a picture at a cut; pooled if that is the last."""
    with torch.device("meta"):
        features = mobilenet_v2().features[:cut].eval()
        output = features(torch.empty(1, 3, side_px, side_px))
    return int(output.shape[1] if cut == len(forward_macs(side_px)) else output.numel())


def saved_share(cut: int, side_px: int) -> float:
    """Share of a training step that the blocks below a cut take.

    A block that learns costs three times its forward pass: forward, and backward for its inputs
    and for its weights.
    """
    macs = forward_macs(side_px)
    frozen, learning = sum(macs[:cut]), 3 * sum(macs[cut:])
    return frozen / (frozen + learning)
