"""Augmented views, each a pure function of (seed, epoch, image, strength).

`draw` turns random numbers into the parameters of views, on the processor; `apply` makes the
views in batches on the device of the pixels. Axes: N images, C channels, H and W pixels.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from drone import counter_rng
from drone.data.conditions import HAZE_GREY, LUMA
from drone.data.warp import warp
from drone.errors import ConfigError

_VIEW_STREAM, _ELASTIC_STREAM, _DISTANCE_STREAM, _WEATHER_STREAM = 1, 2, 3, 4
_SENSOR_STREAM, _NOISE_STREAM = 5, 6
"""Streams of the counter-based RNG."""

_NUM_COLUMNS = 16
"""Random numbers per view, which `draw` takes in a fixed order."""

_ELASTIC_CELLS = 7
"""Side of the coarse grid of random displacements that is interpolated to the full size."""

_NUM_DISTANCES = 12
"""Number of sides that far views are reduced to; those of one side are reduced together."""

_NUM_BLURS = 8
"""Number of blurs; views of one blur are blurred together."""

_CPU_CHUNK = 16
"""Images at a time on a processor, so that intermediate results stay in its cache."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far augmented views differ from the image. Ranges are those at strength 1."""

    strength: float = 0.5
    """Strength of augmentation, 0 (none) to 1; scales every range and the probabilities of flip,
    cutout, elastic warp, distance, weather, blur, noise and grey."""

    brightness: float = 0.4
    """Maximum change of brightness in either direction, as a share of the full scale."""

    brightness_p: float = 0.8
    """Probability of a change of brightness."""

    contrast: float = 0.4
    """Maximum change of contrast about mid-grey in either direction, as a share."""

    contrast_p: float = 0.8
    """Probability of a change of contrast."""

    rotation_deg: float = 20.0
    """Maximum rotation in either direction, in degrees."""

    rotation_p: float = 0.8
    """Probability of a rotation."""

    scale: float = 0.4
    """Maximum zoom in or out: the factor is between 1 / (1 + scale) and 1 + scale."""

    shift: float = 0.15
    """Maximum shift along each axis in either direction, as a share of the image's side."""

    shift_p: float = 0.8
    """Probability of a shift."""

    flip_p: float = 1.0
    """Twice the probability of a horizontal flip at strength 1."""

    cutout_p: float = 0.7
    """Probability, at strength 1, of one square hole filled with the mean colour."""

    cutout_min: float = 16 / 224
    """Minimum side of the hole, as a share of the image's side."""

    cutout_max: float = 64 / 224
    """Maximum side of the hole, as a share of the image's side."""

    elastic_p: float = 0.0
    """Probability, at strength 1, of an elastic warp."""

    elastic: float = 0.02
    """Maximum displacement of the elastic warp, as a share of the image's side."""

    distance_p: float = 0.0
    """Probability, at strength 1, that a view shows its object as from far away: reduced to few
    pixels and enlarged again. Such a view is trained to be a bird or a drone, of whichever kind."""

    distance_min: float = 16 / 224
    """Minimum side that such a view is reduced to, as a share of the image's side."""

    distance_max: float = 120 / 224
    """Maximum side that such a view is reduced to, as a share of the image's side."""

    weather_p: float = 0.0
    """Probability, at strength 1, that a view lies in haze or in the dark, each as often."""

    weather: float = 0.8
    """Maximum share of the light that haze or darkness takes."""

    blur_p: float = 0.0
    """Probability, at strength 1, that a view is blurred."""

    blur: float = 6 / 224
    """Maximum standard deviation of the blur, as a share of the image's side."""

    noise_p: float = 0.0
    """Probability, at strength 1, that a view has Gaussian noise."""

    noise: float = 0.38
    """Maximum standard deviation of the noise, as a share of the full scale."""

    grey_p: float = 0.0
    """Probability, at strength 1, that a view has no colour."""

    def __post_init__(self) -> None:
        for name in vars(self):
            value, maximum = getattr(self, name), 90.0 if name == "rotation_deg" else 1.0
            if not 0 <= value <= maximum:
                raise ConfigError(f"augment.{name} is {value}; it must be 0 to {maximum:g}.")
        for name in ("cutout", "distance"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low > high:
                raise ConfigError(
                    f"augment.{name}_min is {low}, above augment.{name}_max {high}; it must not be."
                )
        if not self.distance_min:
            raise ConfigError("augment.distance_min is 0; it must be above 0.")


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

    far_sides: tuple[float, ...]
    """Side that each view is reduced to, as a share of the image's side; 0 leaves it as it is."""

    warped: tuple[int, ...]
    """Positions of the M views with an elastic warp."""

    warp_M2KK: Tensor
    """Displacements of the coarse grid of those views, in units of theta."""

    grey: tuple[int, ...]
    """Positions of the views without colour."""

    blurs: tuple[float, ...]
    """Standard deviation of each view's blur, as a share of the image's side; 0 for none."""

    noise_N: Tensor
    """Standard deviation of each view's noise, as a share of the full scale; 0 for none."""

    noisy: tuple[int, ...]
    """Positions of the views with noise."""

    noise_key: tuple[int, int, Tensor]
    """Seed, epoch and the keys of all images, from which the noise follows."""


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
        far_sides=tuple(_far_sides(config, seed, epoch, keys_N).tolist()),
        warped=warped,
        warp_M2KK=_elastic_grids(config, seed, epoch, keys_N[list(warped)]),
        **_sensor(config, seed, epoch, keys_N),
    )


def _sensor(config: AugmentConfig, seed: int, epoch: int, keys_N: Tensor) -> dict[str, Any]:
    """Returns those parameters of views that tell what camera took them."""
    columns = counter_rng.uniform(seed, epoch, _SENSOR_STREAM, keys_N, 5).unbind(1)
    strength = config.strength
    blurred_N, noisy_N, grey_N = (
        draws_N < probability * strength
        for draws_N, probability in zip(
            columns[:3], (config.blur_p, config.noise_p, config.grey_p), strict=True
        )
    )
    # In steps, so that views of the same blur are blurred together.
    level_N = torch.floor(columns[3] * _NUM_BLURS + 1) / _NUM_BLURS
    noise_N = columns[4] * config.noise * strength * noisy_N
    return {
        "grey": tuple(torch.nonzero(grey_N).flatten().tolist()),
        "blurs": tuple((level_N * config.blur * strength * blurred_N).tolist()),
        "noise_N": noise_N,
        "noisy": tuple(torch.nonzero(noise_N).flatten().tolist()),
        "noise_key": (seed, epoch, keys_N),
    }


def far_away(config: AugmentConfig, seed: int, epoch: int, keys_N: Tensor) -> Tensor:
    """Returns which views of these images in this epoch show their objects far away, (N,) bool.

    Args:
        config: Ranges and probabilities.
        seed: Seed of the run.
        epoch: Epoch, or number of the view.
        keys_N: Keys of the images, int64.
    """
    return _far_sides(config, seed, epoch, keys_N) > 0


def _far_sides(config: AugmentConfig, seed: int, epoch: int, keys_N: Tensor) -> Tensor:
    if not config.distance_p:  # Training asks in each step.
        return torch.zeros(len(keys_N))
    happens_N, how_far_N = counter_rng.uniform(seed, epoch, _DISTANCE_STREAM, keys_N, 2).unbind(1)
    level_N = torch.floor(how_far_N * _NUM_DISTANCES) / (_NUM_DISTANCES - 1)
    # On a log scale: all octaves of size are equally likely.
    side_N = config.distance_max * (config.distance_min / config.distance_max) ** level_N
    return side_N * (happens_N < config.distance_p * config.strength)


def _weather(config: AugmentConfig, seed: int, epoch: int, keys_N: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the share of light that is left, (N,), and what haze adds to pixel values, (N,)."""
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
        _reduce(view_NHWC, views.far_sides[chunk])
        _remove_colour(
            view_NHWC, [at - start for at in views.grey if chunk.start <= at < chunk.stop]
        )
        _blur(view_NHWC, views.blurs[chunk])
        out[chunk].mul_(gain_N1R[chunk]).add_(offset_N1R[chunk])
        _add_noise(out[chunk], views, chunk, 255 * scale)
        out[chunk].clamp_(min_R, max_R)
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


def _positions_by(values: tuple[float, ...]) -> dict[float, list[int]]:
    """Returns the positions of each value but 0, which are changed together."""
    positions = defaultdict(list)
    for position, value in enumerate(values):
        if value:
            positions[value].append(position)
    return positions


def _reduce(view_NHWC: Tensor, far_sides: tuple[float, ...]) -> None:
    """Reduces the views of objects far away to few pixels and enlarges them again, in place."""
    side_px = view_NHWC.shape[1]
    for side, chosen in _positions_by(far_sides).items():
        small_px = max(1, round(side * side_px))
        far_NCHW = view_NHWC[chosen].permute(0, 3, 1, 2)
        # As a camera does, which averages over a pixel, and as a crop is then resized for a model.
        small = functional.interpolate(far_NCHW, (small_px, small_px), mode="area")
        far = functional.interpolate(small, (side_px, side_px), mode="bilinear")
        view_NHWC[chosen] = far.permute(0, 2, 3, 1)


def _remove_colour(view_NHWC: Tensor, positions: list[int]) -> None:
    """Makes views grey, in place."""
    if positions:
        luma_C = torch.tensor(LUMA, device=view_NHWC.device)
        view_NHWC[positions] = (
            (view_NHWC[positions] * luma_C)
            .sum(-1, keepdim=True)
            .expand(-1, -1, -1, view_NHWC.shape[-1])
        )


def _blur(view_NHWC: Tensor, blurs: tuple[float, ...]) -> None:
    """Blurs views by Gaussians, in place; the edges are reflected."""
    side_px = view_NHWC.shape[1]
    for blur, chosen in _positions_by(blurs).items():
        sigma_px = blur * side_px
        radius = max(1, min(math.ceil(3 * sigma_px), side_px - 1))
        offsets = torch.arange(-radius, radius + 1, device=view_NHWC.device)
        kernel = torch.exp(-(offsets**2) / (2 * sigma_px**2))
        kernel = (kernel / kernel.sum()).to(view_NHWC.dtype)
        images = view_NHWC[chosen].permute(0, 3, 1, 2)
        count, channels = images.shape[:2]
        flat = images.reshape(-1, 1, side_px, view_NHWC.shape[2])
        flat = functional.pad(flat, [radius] * 4, mode="reflect")
        flat = functional.conv2d(flat, kernel.view(1, 1, -1, 1))
        flat = functional.conv2d(flat, kernel.view(1, 1, 1, -1))
        blurred = flat.view(count, channels, side_px, -1)
        view_NHWC[chosen] = blurred.permute(0, 2, 3, 1)


def _add_noise(rows_NHR: Tensor, views: Views, chunk: slice, scale_R: Tensor) -> None:
    """Adds Gaussian noise to normalised views, in place.

    Args:
        rows_NHR: The views of a chunk, each row of pixels with its channels as one row.
        views: Parameters of all views.
        chunk: Which of them these are.
        scale_R: Normalised size of the full scale, for each value of a row.
    """
    noisy = [at for at in views.noisy if chunk.start <= at < chunk.stop]
    if not noisy:
        return
    seed, epoch, keys_N = views.noise_key
    height, row = rows_NHR.shape[1:]
    keys_M = keys_N[noisy].to(rows_NHR.device)
    draws = counter_rng.uniform(seed, epoch, _NOISE_STREAM, keys_M, height * row)
    # By the inverse of the distribution; half a step away from 0 and 1, where it is infinite.
    noise = math.sqrt(2) * torch.erfinv((2 * draws - 1) + 2.0**-24)
    sizes = views.noise_N[noisy].to(rows_NHR.device)[:, None, None]
    rows_NHR[[at - chunk.start for at in noisy]] += noise.view(-1, height, row) * sizes * scale_R


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
