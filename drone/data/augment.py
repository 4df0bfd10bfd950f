"""Augmented views, each a pure function of (seed, epoch, picture, strength).

Axes: N pictures, C channels, H and W pixels. Views are drawn on the processor, a few numbers a
picture, and applied in batches where the pixels are.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from drone import noise
from drone.data.warp import warp
from drone.errors import ConfigError

_VIEW, _ELASTIC = 1, 2
"""Uses of noise."""

_COLUMNS = 17
_ELASTIC_CELLS = 7
_CHUNK = 16
"""Pictures at a time on a processor: what they need in between stays in its cache."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far views may stray from the picture. Ranges are those at strength 1."""

    strength: float = 0.5
    """0 (no augmentation) to 1; scales every range, and the odds of flip, cutout and elastic."""

    brightness: float = 0.4
    """Largest change, as a share of the full scale, either way."""

    brightness_p: float = 0.8
    """Probability of a change of brightness."""

    contrast: float = 0.4
    """Largest change of contrast about mid-grey, either way."""

    contrast_p: float = 0.8
    """Probability of a change of contrast."""

    rotation_deg: float = 20.0
    """Largest rotation, in degrees, either way."""

    rotation_p: float = 0.8
    """Probability of a rotation."""

    scale: float = 0.4
    """Largest zoom in or out: a factor from 1 / (1 + scale) to 1 + scale."""

    shift: float = 0.15
    """Largest shift along each axis, as a share of the side."""

    shift_p: float = 0.8
    """Probability of a shift."""

    flip_p: float = 1.0
    """Odds of a horizontal flip: half of this times the strength."""

    cutout_p: float = 0.7
    """Probability of one square hole filled with the mean colour, times the strength."""

    cutout_min: float = 16 / 224
    """Smallest side of the hole, as a share of the picture's."""

    cutout_max: float = 64 / 224
    """Largest side of the hole, as a share of the picture's."""

    elastic_p: float = 0.0
    """Probability of an elastic warp, times the strength."""

    elastic: float = 0.02
    """Largest displacement of the warp, as a share of the side."""

    def __post_init__(self) -> None:
        for name in vars(self):
            value, most = getattr(self, name), 90.0 if name == "rotation_deg" else 1.0
            if not 0 <= value <= most:
                raise ConfigError(f"augment.{name} is {value}; it must be 0 to {most:g}.")
        if self.cutout_min > self.cutout_max:
            raise ConfigError(
                f"augment.cutout_min is {self.cutout_min}, above cutout_max {self.cutout_max}."
            )


@dataclass(frozen=True)
class Views:
    """The numbers that make N views, on the processor."""

    theta_N23: Tensor
    """Where each pixel of the view comes from, as `affine_grid` takes it: x and y in -1..1."""

    gain_N: Tensor
    """Factor of each pixel value."""

    offset_N: Tensor
    """Added to it, on the scale 0..255."""

    hole_N4: Tensor
    """Top, bottom, left and right of the hole as shares of the side; 0 where there is none."""

    warped: tuple[int, ...]
    """Positions of the views with an elastic warp."""

    warp_M2KK: Tensor
    """Displacements of a coarse grid for those, in units of theta."""


def draw(config: AugmentConfig, seed: int, epoch: int, keys_N: Tensor) -> Views:
    """The views of these pictures in this epoch."""
    strength = config.strength
    columns = iter(noise.uniform(seed, epoch, _VIEW, keys_N, _COLUMNS).unbind(1))

    def happens(probability: float) -> Tensor:
        return next(columns) < probability

    def either_way(most: float) -> Tensor:
        return (next(columns) * 2 - 1) * most * strength

    offset_N = either_way(config.brightness) * happens(config.brightness_p) * 255
    contrast_N = either_way(config.contrast) * happens(config.contrast_p)
    angle_N = either_way(math.radians(config.rotation_deg)) * happens(config.rotation_p)
    zoom_N = torch.exp(either_way(math.log1p(config.scale)))
    shifted_N = happens(config.shift_p)
    shift_x_N, shift_y_N = (either_way(2 * config.shift) * shifted_N for _ in range(2))
    flipped_N = happens(config.flip_p * strength / 2)
    hole_N4 = _holes(config, happens(config.cutout_p * strength), *(next(columns) for _ in "123"))
    warped_N = happens(config.elastic_p * strength)
    cos_N, sin_N = torch.cos(angle_N) / zoom_N, torch.sin(angle_N) / zoom_N
    mirror_N = 1 - 2 * flipped_N.float()
    rows = (cos_N * mirror_N, -sin_N, shift_x_N, sin_N * mirror_N, cos_N, shift_y_N)
    warped = tuple(torch.nonzero(warped_N).flatten().tolist())
    return Views(
        theta_N23=torch.stack(rows, dim=1).view(-1, 2, 3),
        gain_N=1 + contrast_N,
        offset_N=offset_N - contrast_N * 127.5,
        hole_N4=hole_N4,
        warped=warped,
        warp_M2KK=_warps(config, seed, epoch, keys_N[list(warped)]),
    )


def _holes(
    config: AugmentConfig, present_N: Tensor, size_N: Tensor, y_N: Tensor, x_N: Tensor
) -> Tensor:
    side_N = config.cutout_min + size_N * (config.cutout_max - config.cutout_min)
    top_N, left_N = y_N * (1 - side_N), x_N * (1 - side_N)
    edges = torch.stack([top_N, top_N + side_N, left_N, left_N + side_N], dim=1)
    return edges * present_N[:, None]


def _warps(config: AugmentConfig, seed: int, epoch: int, keys_M: Tensor) -> Tensor:
    count = 2 * _ELASTIC_CELLS**2
    draws = noise.uniform(seed, epoch, _ELASTIC, keys_M, count) * 2 - 1
    warp = draws.view(-1, 2, _ELASTIC_CELLS, _ELASTIC_CELLS)
    return warp * 2 * config.elastic * config.strength


def apply(pixels_NHWC: Tensor, views: Views, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """The views, normalised, (N, C, H, W) float32 in channels-last layout.

    Args:
        pixels_NHWC: uint8, on any device.
        views: of the same N pictures.
        mean_C: of the pixel values on the scale 0..1; also fills the hole.
        std_C: of the pixel values on the scale 0..1.
    """
    count, height, width, channels = pixels_NHWC.shape
    device = pixels_NHWC.device
    displaced = _displacements(views, height, width)
    # gain and offset, the limits 0..255 and normalisation in one: factors, shifts and limits for
    # a whole row of pixels, so that each operation runs along memory.
    scale, shift = (1 / (std_C * 255)).repeat(width), (-mean_C / std_C).repeat(width)
    gain_N1R = views.gain_N.to(device)[:, None, None] * scale
    offset_N1R = views.offset_N.to(device)[:, None, None] * scale + shift
    least_R, most_R = shift, 255 * scale + shift
    out = torch.empty((count, height, width * channels), device=device)
    size = count if device.type != "cpu" else _CHUNK
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        own = {at - start: grid for at, grid in displaced.items() if part.start <= at < part.stop}
        warped_NHWC = warp(pixels_NHWC[part], views.theta_N23[part], own)
        out[part] = warped_NHWC.view(-1, height, width * channels)
        out[part].mul_(gain_N1R[part]).add_(offset_N1R[part]).clamp_(least_R, most_R)
    view_NHWC = out.view(count, height, width, channels)
    _make_holes(view_NHWC, views.hole_N4)
    return view_NHWC.permute(0, 3, 1, 2)


def normalise(pixels_NHWC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """The pictures as they are, normalised, (N, C, H, W) float32 in channels-last layout."""
    pixels = pixels_NHWC.float()  # Channels last, so that a whole row is one run of numbers.
    width = pixels.shape[2]
    mean, scale = (mean_C * 255).repeat(width), (1 / (std_C * 255)).repeat(width)
    pixels.view(*pixels.shape[:2], -1).sub_(mean).mul_(scale)
    return pixels.permute(0, 3, 1, 2)


def _displacements(views: Views, height: int, width: int) -> dict[int, Tensor]:
    """The elastic warps in full, (H, W, 2), by position."""
    if not views.warped:
        return {}
    warps = functional.interpolate(
        views.warp_M2KK, (height, width), mode="bicubic", align_corners=True
    )
    return dict(zip(views.warped, warps.permute(0, 2, 3, 1), strict=True))


def _make_holes(view_NHWC: Tensor, hole_N4: Tensor) -> None:
    """Sets the pixels whose centre is in the hole to 0, in place."""
    _, height, width, _ = view_NHWC.shape
    sides = torch.tensor([height, height, width, width])
    edges_N4 = torch.ceil(hole_N4 * sides - 0.5).long()
    if view_NHWC.device.type != "cpu":
        view_NHWC.masked_fill_(_inside(edges_N4.to(view_NHWC.device), height, width), 0)
        return
    for position, (top, bottom, left, right) in enumerate(edges_N4.tolist()):
        if bottom > top:
            view_NHWC[position, top:bottom, left:right] = 0


def _inside(edges_N4: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are in the holes, (N, H, W, 1): one operation for all, as a GPU wants it."""
    top, bottom, left, right = (edge[:, None] for edge in edges_N4.unbind(1))
    y_H, x_W = (torch.arange(side, device=edges_N4.device) for side in (height, width))
    rows_NH, columns_NW = (y_H >= top) & (y_H < bottom), (x_W >= left) & (x_W < right)
    return (rows_NH[:, :, None] & columns_NW[:, None, :])[..., None]
