"""Augmented views, each a pure function of (seed, epoch, image, strength).

`draw` turns random numbers into the parameters of views, on the processor; `apply` makes the
views in batches on the device of the pixels. Axes: N images, C channels, H and W pixels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from drone import counter_rng
from drone.data import degradations
from drone.data.augment_config import AugmentConfig
from drone.data.conditions import HAZE_GREY
from drone.data.degradations import Degradations
from drone.data.warp import warp

_VIEW_STREAM, _ELASTIC_STREAM, _WEATHER_STREAM = 1, 2, 4
"""Streams of the counter-based RNG; `degradations` has others."""

_NUM_COLUMNS = 16
"""Random numbers per view, which `draw` takes in a fixed order."""

_ELASTIC_CELLS = 7
"""Side of the coarse grid of random displacements that is interpolated to the full size."""

_CPU_CHUNK = 16
"""Images at a time on a processor, so that intermediate results stay in its cache."""


@dataclass(frozen=True)
class Views:
    """The parameters of N views, on the processor."""

    theta_N23: Tensor
    """Affine map from each pixel of the view to the image, as `affine_grid` takes it."""

    gain_N: Tensor
    """Factor of all pixel values."""

    offset_N: Tensor
    """Offset of all pixel values after the gain, on the scale 0 to 255."""

    hole_N4: Tensor
    """Top, bottom, left and right of the hole as shares of the side; 0 if there is none."""

    warped: tuple[int, ...]
    """Positions of the M views with an elastic warp."""

    warp_M2KK: Tensor
    """Displacements of the coarse grid of those views, in units of theta."""

    degradations: Degradations
    """What their camera loses of them."""


def draw(config: AugmentConfig, seed: int, epoch: int, keys_N: Tensor) -> Views:
    """Returns the parameters of the views of these images in this epoch.

    Args:
        config: Ranges and probabilities.
        seed: Seed of the run.
        epoch: Epoch, or number of the view.
        keys_N: Keys of the images, int64; see `dataset.Split.keys_N`.
    """
    strength = config.strength
    # Every number is drawn whether it is used or not, so that a setting does not change others.
    columns = iter(counter_rng.uniform(seed, epoch, _VIEW_STREAM, keys_N, _NUM_COLUMNS).unbind(1))

    def happens(probability: float) -> Tensor:
        return next(columns) < probability

    def either_way(maximum: float) -> Tensor:
        return (next(columns) * 2 - 1) * maximum * strength

    offset_N = either_way(config.brightness) * happens(config.brightness_p) * 255
    contrast_N = either_way(config.contrast) * happens(config.contrast_p)
    angle_N = either_way(math.radians(config.rotation_deg)) * happens(config.rotation_p)
    # On a log scale: zooming in and out by the same factor are equally likely.
    zoom_N = torch.exp(either_way(math.log1p(config.scale)))
    shifted_N = happens(config.shift_p)
    # Twice, since theta measures the side as 2, from -1 to 1.
    shift_x_N, shift_y_N = (either_way(2 * config.shift) * shifted_N for _ in range(2))
    flipped_N = happens(config.flip_p * strength / 2)
    hole_N4 = _holes(
        config, happens(config.cutout_p * strength), *(next(columns) for _ in range(3))
    )
    warped_N = happens(config.elastic_p * strength)
    cos_N, sin_N = torch.cos(angle_N) / zoom_N, torch.sin(angle_N) / zoom_N
    light_N, haze_N = _weather(config, seed, epoch, keys_N)
    mirror_N = 1 - 2 * flipped_N.float()
    theta = (cos_N * mirror_N, -sin_N, shift_x_N, sin_N * mirror_N, cos_N, shift_y_N)
    warped = tuple(torch.nonzero(warped_N).flatten().tolist())
    return Views(
        theta_N23=torch.stack(theta, dim=1).view(-1, 2, 3),
        gain_N=(1 + contrast_N) * light_N,
        # Contrast scales about mid-grey, 127.5, which must stay where it is.
        offset_N=(offset_N - contrast_N * 127.5) * light_N + haze_N,
        hole_N4=hole_N4,
        warped=warped,
        warp_M2KK=_elastic_grids(config, seed, epoch, keys_N[list(warped)]),
        degradations=degradations.draw(config, seed, epoch, keys_N),
    )


def _weather(config: AugmentConfig, seed: int, epoch: int, keys_N: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the share of light that is left, (N,), and what haze adds to pixel values, (N,)."""
    if not config.weather_p:  # Most runs have none, and training draws in each step.
        return torch.ones(len(keys_N)), torch.zeros(len(keys_N))
    draws_N3 = counter_rng.uniform(seed, epoch, _WEATHER_STREAM, keys_N, 3)
    happens_N, how_much_N, which_N = draws_N3.unbind(1)
    lost_N = how_much_N * config.weather * config.strength
    lost_N = lost_N * (happens_N < config.weather_p * config.strength)
    return 1 - lost_N, lost_N * (which_N < 0.5) * 255 * HAZE_GREY


def _holes(
    config: AugmentConfig, present_N: Tensor, size_N: Tensor, y_N: Tensor, x_N: Tensor
) -> Tensor:
    side_N = config.cutout_min + size_N * (config.cutout_max - config.cutout_min)
    top_N, left_N = y_N * (1 - side_N), x_N * (1 - side_N)
    edges = torch.stack([top_N, top_N + side_N, left_N, left_N + side_N], dim=1)
    return edges * present_N[:, None]


def _elastic_grids(config: AugmentConfig, seed: int, epoch: int, keys_M: Tensor) -> Tensor:
    num_columns = 2 * _ELASTIC_CELLS**2
    draws = counter_rng.uniform(seed, epoch, _ELASTIC_STREAM, keys_M, num_columns) * 2 - 1
    grids = draws.view(-1, 2, _ELASTIC_CELLS, _ELASTIC_CELLS)
    return grids * 2 * config.elastic * config.strength


def apply(pixels_NHWC: Tensor, views: Views, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Returns the normalised views, (N, C, H, W) float32 in channels-last layout.

    Args:
        pixels_NHWC: Images as uint8, on any device.
        views: Views of the same N images.
        mean_C: Mean of the pixel values on the scale 0 to 1; also fills the hole.
        std_C: Standard deviation of the pixel values on the scale 0 to 1.
    """
    count, height, width, channels = pixels_NHWC.shape
    device = pixels_NHWC.device
    displacements = _displacements(views, height, width)
    # Gain and offset, the limits 0..255 and normalisation in one: factors, shifts and limits for
    # a whole row of pixels, so that each operation runs along memory.
    scale, shift = (1 / (std_C * 255)).repeat(width), (-mean_C / std_C).repeat(width)
    gain_N1R = views.gain_N.to(device)[:, None, None] * scale
    offset_N1R = views.offset_N.to(device)[:, None, None] * scale + shift
    min_R, max_R = shift, 255 * scale + shift
    out = torch.empty((count, height, width * channels), device=device)
    # All at once on a GPU, where each operation costs a launch.
    size = count if device.type != "cpu" else _CPU_CHUNK
    for start in range(0, count, size):
        chunk = slice(start, min(start + size, count))
        in_chunk = {
            position - start: grid
            for position, grid in displacements.items()
            if chunk.start <= position < chunk.stop
        }
        warped_NHWC = warp(pixels_NHWC[chunk], views.theta_N23[chunk], in_chunk)
        out[chunk] = warped_NHWC.view(-1, height, width * channels)
        view_NHWC = out[chunk].view(-1, height, width, channels)
        lost = views.degradations.part(chunk)
        degradations.lose_detail(view_NHWC, lost)
        rows_NHR = out[chunk].mul_(gain_N1R[chunk]).add_(offset_N1R[chunk])
        _add_noise(rows_NHR, lost, scale)
        rows_NHR.clamp_(min_R, max_R)
        _compress(rows_NHR, lost, scale, shift)
    view_NHWC = out.view(count, height, width, channels)
    _make_holes(view_NHWC, views.hole_N4)
    return view_NHWC.permute(0, 3, 1, 2)


def normalise(pixels_NHWC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Returns the unaugmented images, normalised, (N, C, H, W) float32 in channels-last layout."""
    pixels = pixels_NHWC.float()
    # As in `apply`, a whole row of pixels at a time.
    width = pixels.shape[2]
    mean, scale = (mean_C * 255).repeat(width), (1 / (std_C * 255)).repeat(width)
    pixels.view(*pixels.shape[:2], -1).sub_(mean).mul_(scale)
    return pixels.permute(0, 3, 1, 2)


def _displacements(views: Views, height: int, width: int) -> dict[int, Tensor]:
    """Returns the elastic warps at full size, (H, W, 2), by position."""
    if not views.warped:
        return {}
    warps = functional.interpolate(
        views.warp_M2KK, (height, width), mode="bicubic", align_corners=True
    )
    return dict(zip(views.warped, warps.permute(0, 2, 3, 1), strict=True))


def _add_noise(rows_NHR: Tensor, lost: Degradations, scale_R: Tensor) -> None:
    """Adds noise to normalised views, in place.

    Args:
        rows_NHR: Views, each row of pixels with its channels as one row.
        lost: What they lose.
        scale_R: Normalised size of a pixel value of 1, for each value of a row.
    """
    if lost.noisy:
        noise_MHR = degradations.noise(rows_NHR.shape[1:], lost, rows_NHR.device)
        rows_NHR[list(lost.noisy)] += noise_MHR * scale_R


def _compress(rows_NHR: Tensor, lost: Degradations, scale_R: Tensor, shift_R: Tensor) -> None:
    """Compresses normalised views, in place; scale and shift are what normalised them."""
    if lost.compressed:
        chosen = list(lost.compressed)
        pixels_MHR = (rows_NHR[chosen] - shift_R) / scale_R
        pixels_MHWC = pixels_MHR.view(*pixels_MHR.shape[:2], -1, 3)
        compressed = degradations.compress(pixels_MHWC, lost.qualities_N[chosen])
        rows_NHR[chosen] = compressed.flatten(2) * scale_R + shift_R


def _make_holes(view_NHWC: Tensor, hole_N4: Tensor) -> None:
    """Sets the pixels whose centre is in the hole to 0, in place."""
    _, height, width, _ = view_NHWC.shape
    sides = torch.tensor([height, height, width, width])
    # A pixel is in the hole if its centre is, which lies half a pixel after its index.
    edges_N4 = torch.ceil(hole_N4 * sides - 0.5).long()
    if view_NHWC.device.type != "cpu":
        view_NHWC.masked_fill_(_hole_mask(edges_N4.to(view_NHWC.device), height, width), 0)
        return
    for position, (top, bottom, left, right) in enumerate(edges_N4.tolist()):
        if bottom > top:
            view_NHWC[position, top:bottom, left:right] = 0


def _hole_mask(edges_N4: Tensor, height: int, width: int) -> Tensor:
    """Returns which pixels are in the holes, (N, H, W, 1).

    One operation for all images: on a GPU a loop over them would cost a launch each.
    """
    top, bottom, left, right = (edge[:, None] for edge in edges_N4.unbind(1))
    y_H, x_W = (torch.arange(side, device=edges_N4.device) for side in (height, width))
    rows_NH, columns_NW = (y_H >= top) & (y_H < bottom), (x_W >= left) & (x_W < right)
    return (rows_NH[:, :, None] & columns_NW[:, None, :])[..., None]
