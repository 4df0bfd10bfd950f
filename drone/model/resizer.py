"""Learned resizers that downsample larger images to the backbone's 224 px, one per resolution.

Both kinds start as area averaging, so that a model starts where one of 224 px stands. Images of
224 px pass unchanged. Axes: N images, C channels, H and W pixels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from drone.model.config import ModelConfig

_SIDE_PX = 224
"""Side of the images that the backbone takes."""

STACKS = {448: (2,), 672: (3,), 896: (2, 2), 1344: (2, 3), 1792: (2, 2, 2), 3584: (2, 2, 2, 2)}
"""Stride of each convolution by image side in pixels, as in the original project."""

SIDES_PX = (_SIDE_PX, *STACKS)
"""Image sides that a resizer takes, ascending."""

_NUM_CHANNELS = 16
"""Hidden channels of the residual resizer."""


class _StackResizer(nn.Sequential):
    """The original's resizer: 3-to-3 convolutions without bias, each as wide as its stride."""

    def __init__(self, strides: Sequence[int], init: str) -> None:
        """Creates the layers; `init` is "area" or "random"."""
        super().__init__(
            *(nn.Conv2d(3, 3, stride, stride=stride, bias=False) for stride in strides)
        )
        if init == "area":
            for layer, stride in zip(self, strides, strict=True):
                assert isinstance(layer, nn.Conv2d)
                with torch.no_grad():
                    layer.weight.copy_(_averaging_kernel(stride))

    def forward(self, input: Tensor) -> Tensor:
        """Returns the images at 224 px."""
        with _full_precision(input):
            for layer in self:
                input = layer(input)
        return input


class _ResidualResizer(nn.Module):
    """Area averaging plus a small convolutional correction that starts at zero.

    Learned resizing as a correction of a plain one follows Talebi and Milanfar 2021, "Learning to
    Resize Images for Computer Vision Tasks". The first layer sees one pixel beyond each square.
    """

    def __init__(self, factor: int) -> None:
        """Creates the layers; they divide the side by `factor`."""
        super().__init__()
        self.factor = factor
        self.average: Tensor
        # Not persistent, since it follows from the factor.
        self.register_buffer("average", _averaging_kernel(factor), persistent=False)
        self.reduce = nn.Conv2d(3, _NUM_CHANNELS, factor + 2, stride=factor, padding=1)
        self.colour = nn.Conv2d(_NUM_CHANNELS, 3, 1)
        # Only this layer: with `reduce` at zero too, neither kernel would ever get a gradient.
        nn.init.zeros_(self.colour.weight)
        assert self.colour.bias is not None
        nn.init.zeros_(self.colour.bias)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Returns the images at 224 px."""
        with _full_precision(images_NCHW):
            # As a convolution it takes a quarter of the time of avg_pool2d.
            average = functional.conv2d(images_NCHW, self.average, stride=self.factor)
        correction: Tensor = self.colour(functional.relu(self.reduce(images_NCHW)))
        return average + correction


def _averaging_kernel(factor: int) -> Tensor:
    """Returns the kernel that averages squares of pixels, each colour separately."""
    return (torch.eye(3)[:, :, None, None] / factor**2).repeat(1, 1, factor, factor)


def _full_precision(images_NCHW: Tensor) -> torch.autocast:
    """Disables autocast: bf16 has as few significant bits as a pixel, so rounding would show."""
    return torch.autocast(images_NCHW.device.type, enabled=False)


class Resizer(nn.Module):
    """Downsamples images of any of `SIDES_PX` to 224 px, with separate layers for each side."""

    def __init__(self, config: ModelConfig) -> None:
        """Creates the layers of all sides.

        Args:
            config: Model configuration whose `resizer` is "stack" or "residual".
        """
        super().__init__()
        self.sizes = nn.ModuleDict(
            {
                str(side): _StackResizer(strides, config.resizer_init)
                if config.resizer == "stack"
                else _ResidualResizer(math.prod(strides))
                for side, strides in STACKS.items()
            }
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Returns the images at 224 px, (N, 3, 224, 224) fp32.

        Args:
            images_NCHW: Normalised images of one size, (N, 3, side, side) fp32.

        Raises:
            ValueError: The side is not one of `SIDES_PX`.
        """
        side = images_NCHW.shape[-1]
        if side == _SIDE_PX:
            return images_NCHW
        if side not in STACKS:
            raise ValueError(
                f"The resizer got images of {side} px; it takes {', '.join(map(str, SIDES_PX))}."
            )
        resized: Tensor = self.sizes[str(side)](images_NCHW)
        return resized
