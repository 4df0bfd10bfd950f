"""Networks that bring larger pictures to the 224 px that the backbone takes, one for each size.

At their start both kinds give what averaging over squares of pixels gives, so that a model begins
where one of 224 px stands. A picture of 224 px passes as it is. Axes: N pictures, C channels, H and
W pixels.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from drone.model.config import ModelConfig

SIDE_PX = 224
"""What the backbone takes."""

STACKS = {448: (2,), 672: (3,), 896: (2, 2), 1344: (2, 3), 1792: (2, 2, 2), 3584: (2, 2, 2, 2)}
"""By side in pixels, what each convolution divides it by, as the original had it."""

_WIDTH = 16
"""Channels of the residual."""


class Stack(nn.Sequential):
    """The original's: 3-to-3 convolutions without bias, each as wide as its stride."""

    def __init__(self, factors: Sequence[int], start: str) -> None:
        """Makes the layers; `start` is "area" or "random"."""
        super().__init__(
            *(nn.Conv2d(3, 3, factor, stride=factor, bias=False) for factor in factors)
        )
        if start == "area":
            for layer, factor in zip(self, factors, strict=True):
                assert isinstance(layer, nn.Conv2d)
                with torch.no_grad():
                    layer.weight.copy_(_average(factor))

    def forward(self, input: Tensor) -> Tensor:
        """The pictures at 224 px."""
        with _precisely(input):
            for layer in self:
                input = layer(input)
        return input


class Residual(nn.Module):
    """A small network beside the average, whose last layer begins at zero.

    Learned resizing as a correction of a plain one follows Talebi and Milanfar 2021, "Learning to
    Resize Images for Computer Vision Tasks". Its first layer sees a pixel beyond each square.
    """

    def __init__(self, factor: int) -> None:
        """Divides the side by a factor."""
        super().__init__()
        self.factor = factor
        self.average: Tensor
        self.register_buffer("average", _average(factor), persistent=False)
        self.reduce = nn.Conv2d(3, _WIDTH, factor + 2, stride=factor, padding=1)
        self.colour = nn.Conv2d(_WIDTH, 3, 1)
        nn.init.zeros_(self.colour.weight)
        assert self.colour.bias is not None
        nn.init.zeros_(self.colour.bias)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The pictures at 224 px."""
        with _precisely(images_NCHW):
            # As a convolution it takes a quarter of the time of avg_pool2d.
            average = functional.conv2d(images_NCHW, self.average, stride=self.factor)
        correction: Tensor = self.colour(functional.relu(self.reduce(images_NCHW)))
        return average + correction


def _average(factor: int) -> Tensor:
    """The kernel that averages over squares of pixels, each colour by itself."""
    return (torch.eye(3)[:, :, None, None] / factor**2).repeat(1, 1, factor, factor)


def _precisely(images_NCHW: Tensor) -> torch.autocast:
    """fp32: bf16 keeps 8 bits of a number, as many as a pixel has, and rounding would show."""
    return torch.autocast(images_NCHW.device.type, enabled=False)


class Resizer(nn.Module):
    """Brings pictures of any of the sizes to 224 px, each size by layers of its own."""

    def __init__(self, config: ModelConfig) -> None:
        """Makes the layers of all sizes.

        Args:
            config: whose `resizer` is "stack" or "residual".
        """
        super().__init__()
        self.sizes = nn.ModuleDict(
            {
                str(side): Stack(factors, config.resizer_start)
                if config.resizer == "stack"
                else Residual(math.prod(factors))
                for side, factors in STACKS.items()
            }
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Normalised pictures of one size, (N, 3, side, side) fp32, at 224 px, fp32.

        Raises:
            ValueError: there is no such size.
        """
        side = images_NCHW.shape[-1]
        if side == SIDE_PX:
            return images_NCHW
        if side not in STACKS:
            sides = ", ".join(map(str, (SIDE_PX, *STACKS)))
            raise ValueError(f"Pictures of {side} px; this network takes {sides}.")
        resized: Tensor = self.sizes[str(side)](images_NCHW)
        return resized


def sides_px() -> tuple[int, ...]:
    """The sizes that a resizer takes, ascending."""
    return tuple(itertools.chain([SIDE_PX], STACKS))
