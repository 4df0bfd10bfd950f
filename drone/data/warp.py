"""Warps images: an affine map and, for a few, an elastic displacement on top.

OpenCV does it on a processor, in half the time of torch's `grid_sample`, which does it on a GPU.
Both interpolate linearly, reflect at the edges and round to integers; a test compares them.
Axes: N images, H and W pixels, C channels.
"""

from collections.abc import Mapping

import cv2
import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor


def warp(pixels_NHWC: Tensor, theta_N23: Tensor, displacements: Mapping[int, Tensor]) -> Tensor:
    """Returns the warped images, (N, H, W, C) uint8, on the device of the pixels.

    Args:
        pixels_NHWC: Images as uint8.
        theta_N23: Maps each pixel of the result to the source, as torch's `affine_grid` takes it
            with align_corners=False: x and y from -1 to 1, edge to edge.
        displacements: Elastic displacement of some images by position, (H, W, 2), added to the
            source coordinates in the units of theta.
    """
    if pixels_NHWC.device.type == "cpu":
        return _warp_cpu(pixels_NHWC, theta_N23, displacements)
    return _warp_gpu(pixels_NHWC, theta_N23, displacements)


def _warp_cpu(
    pixels_NHWC: Tensor, theta_N23: Tensor, displacements: Mapping[int, Tensor]
) -> Tensor:
    # OpenCV has its own thread pool, which would otherwise use all cores on every worker.
    cv2.setNumThreads(torch.get_num_threads())
    _, height, width, _ = pixels_NHWC.shape
    warped_NHWC = torch.empty_like(pixels_NHWC)
    pixel_maps_N23 = _in_pixels(theta_N23.double().numpy(), height, width)
    sources, targets = pixels_NHWC.numpy(), warped_NHWC.numpy()
    for position, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if position in displacements:
            grid_HW2 = _grid(theta_N23[position : position + 1], height, width)[0]
            grid_HW2 += displacements[position]
            x_HW, y_HW = (
                (((grid_HW2[..., axis] + 1) * side - 1) / 2).numpy()
                for axis, side in enumerate((width, height))
            )
            # warpAffine takes no displacement; remap takes a map of every pixel and is slower.
            cv2.remap(
                source,
                x_HW,
                y_HW,
                dst=target,
                interpolation=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REFLECT,
            )
            continue
        cv2.warpAffine(
            source,
            pixel_maps_N23[position],
            (width, height),
            dst=target,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
    return warped_NHWC


def _in_pixels(theta_N23: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Returns the same maps in pixel coordinates: theta's -1..1 is pixel -0.5 to side - 0.5."""
    half = np.array([width, height]) / 2
    linear_N22 = theta_N23[:, :, :2] * half[:, None] / half
    centre = half - 0.5
    shift_N2 = theta_N23[:, :, 2] * half + centre - linear_N22 @ centre
    return np.concatenate([linear_N22, shift_N2[:, :, None]], axis=2)


def _warp_gpu(
    pixels_NHWC: Tensor, theta_N23: Tensor, displacements: Mapping[int, Tensor]
) -> Tensor:
    _, height, width, _ = pixels_NHWC.shape
    grid_NHW2 = _grid(theta_N23.to(pixels_NHWC.device), height, width)
    for position, displacement in displacements.items():
        grid_NHW2[position] += displacement.to(grid_NHW2.device)
    source = pixels_NHWC.permute(0, 3, 1, 2).float()
    view = functional.grid_sample(
        source, grid_NHW2, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    # Contiguous, because `augmentation.apply` views each row of pixels as one axis.
    return view.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _grid(theta_N23: Tensor, height: int, width: int) -> Tensor:
    """Returns what `affine_grid` gives with align_corners=False, (N, H, W, 2), 10 times faster."""
    device = theta_N23.device
    x_W = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    y_H = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    grid = torch.empty((len(theta_N23), height, width, 2), device=device)
    # Coordinates are a sum of a row and a column vector: no matrix product per pixel.
    for axis in range(2):
        along_x, along_y, shift = theta_N23[:, axis].unbind(1)
        torch.add(
            (along_y[:, None] * y_H + shift[:, None])[:, :, None],
            (along_x[:, None] * x_W)[:, None, :],
            out=grid[..., axis],
        )
    return grid
