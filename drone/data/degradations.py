"""What a camera loses of augmented views: detail, colour, and what its compression throws away.

The counterparts of `conditions` for batches on any device, from the counter-based RNG. Pixel values
are float32 on the scale 0 to 255. Axes: N images, H and W pixels, C channels (RGB).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from drone import counter_rng
from drone.data.augment_config import AugmentConfig
from drone.data.conditions import LUMA

_DISTANCE_STREAM, _BLUR_STREAM, _NOISE_STREAM, _PIXEL_STREAM = 3, 5, 6, 7
_GREY_STREAM, _INFRARED_STREAM, _JPEG_STREAM = 8, 9, 10
"""Streams of the counter-based RNG; `augmentation` has others."""

_NUM_DISTANCES = 12
"""Number of sides that far views are reduced to; those of one side are reduced together."""

_NUM_BLURS = 8
"""Number of blurs; views of one blur are blurred together."""

_BLOCK_PX = 8
"""Side of the blocks that JPEG transforms."""

_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
"""From RGB to brightness and two colour differences about 0 (ITU-T T.871)."""

# fmt: off
_LUMA_STEPS = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)
_CHROMA_STEPS = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)
# fmt: on
"""Quantization steps at quality 50, by rows (ITU-T T.81, tables K.1 and K.2)."""


@dataclass(frozen=True)
class Degradations:
    """What N views lose; on the processor."""

    far_sides: tuple[float, ...]
    """Side that each view is reduced to, as a share of the image's side; 0 leaves it as it is."""

    blurs: tuple[float, ...]
    """Standard deviation of each view's blur, as a share of the image's side; 0 for none."""

    grey: tuple[int, ...]
    """Positions of the views without colour."""

    infrared: tuple[int, ...]
    """Positions of the views in infrared-like tones."""

    noise_N: Tensor
    """Standard deviation of each view's noise, as a share of the full scale; 0 for none."""

    noisy: tuple[int, ...]
    """Positions of the views with noise."""

    noise_key: tuple[int, int, Tensor]
    """Seed, epoch and the keys of all images, from which the noise follows."""

    qualities_N: Tensor
    """JPEG quality of each view, 1 to 100; 100 where it is not compressed."""

    compressed: tuple[int, ...]
    """Positions of the views that are compressed."""

    def part(self, chunk: slice) -> "Degradations":
        """Returns what the views of a chunk lose, with positions counted from its start."""

        def within(positions: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(at - chunk.start for at in positions if chunk.start <= at < chunk.stop)

        seed, epoch, keys_N = self.noise_key
        return Degradations(
            far_sides=self.far_sides[chunk],
            blurs=self.blurs[chunk],
            grey=within(self.grey),
            infrared=within(self.infrared),
            noise_N=self.noise_N[chunk],
            noisy=within(self.noisy),
            noise_key=(seed, epoch, keys_N[chunk]),
            qualities_N=self.qualities_N[chunk],
            compressed=within(self.compressed),
        )


def draw(config: AugmentConfig, seed: int, epoch: int, keys_N: Tensor) -> Degradations:
    """Returns what the views of these images lose in this epoch.

    Args:
        config: Ranges and probabilities.
        seed: Seed of the run.
        epoch: Epoch, or number of the view.
        keys_N: Keys of the images, int64.
    """

    def drawn(stream: int, probability: float) -> tuple[Tensor, Tensor]:
        return _draw(seed, epoch, stream, keys_N, probability * config.strength)

    blurred_N, blur_N = drawn(_BLUR_STREAM, config.blur_p)
    # In steps, so that views of the same blur are blurred together.
    level_N = torch.floor(blur_N * _NUM_BLURS + 1) / _NUM_BLURS
    noisy_N, noise_N = drawn(_NOISE_STREAM, config.noise_p)
    compressed_N, lost_N = drawn(_JPEG_STREAM, config.jpeg_p)
    lost_N = lost_N * config.jpeg * config.strength * compressed_N
    return Degradations(
        far_sides=tuple(_far_sides(config, seed, epoch, keys_N).tolist()),
        blurs=tuple((level_N * config.blur * config.strength * blurred_N).tolist()),
        grey=_positions(drawn(_GREY_STREAM, config.grey_p)[0]),
        infrared=_positions(drawn(_INFRARED_STREAM, config.infrared_p)[0]),
        noise_N=noise_N * config.noise * config.strength * noisy_N,
        noisy=_positions(noisy_N),
        noise_key=(seed, epoch, keys_N),
        qualities_N=torch.clamp(torch.round(100 * (1 - lost_N)), min=1),
        compressed=_positions(compressed_N),
    )


def _draw(
    seed: int, epoch: int, stream: int, keys_N: Tensor, probability: float
) -> tuple[Tensor, Tensor]:
    """Returns which views something happens to, (N,) bool, and how much of its range, (N,)."""
    if not probability:  # Most runs have none of them, and training draws in each step.
        return torch.zeros(len(keys_N), dtype=torch.bool), torch.zeros(len(keys_N))
    draws_N, how_much_N = counter_rng.uniform(seed, epoch, stream, keys_N, 2).unbind(1)
    return draws_N < probability, how_much_N


def _positions(chosen_N: Tensor) -> tuple[int, ...]:
    return tuple(torch.nonzero(chosen_N).flatten().tolist())


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
    probability = config.distance_p * config.strength
    happens_N, how_far_N = _draw(seed, epoch, _DISTANCE_STREAM, keys_N, probability)
    level_N = torch.floor(how_far_N * _NUM_DISTANCES) / (_NUM_DISTANCES - 1)
    # On a log scale: all octaves of size are equally likely.
    side_N = config.distance_max * (config.distance_min / config.distance_max) ** level_N
    return side_N * happens_N


def lose_detail(view_NHWC: Tensor, lost: Degradations) -> None:
    """Applies what happens before the exposure, in place: distance, colour and blur."""
    _reduce(view_NHWC, lost.far_sides)
    _remove_colour(view_NHWC, lost.grey)
    _remove_colour(view_NHWC, lost.infrared)
    if lost.infrared:
        infrared = list(lost.infrared)
        view_NHWC[infrared] = 127.5 + (127.5 - view_NHWC[infrared]) / 2
    _blur(view_NHWC, lost.blurs)


def noise(shape: Sequence[int], lost: Degradations, device: torch.device) -> Tensor:
    """Returns the noise of the M noisy views in pixel values, (M, *shape).

    Args:
        shape: Shape of a view.
        lost: What the views lose.
        device: Where to make the noise.
    """
    noisy = list(lost.noisy)
    seed, epoch, keys_N = lost.noise_key
    keys_M = keys_N[noisy].to(device)
    draws = counter_rng.uniform(seed, epoch, _PIXEL_STREAM, keys_M, math.prod(shape))
    # By the inverse of the distribution; half a step away from 0 and 1, where it is infinite.
    normal = math.sqrt(2) * torch.erfinv((2 * draws - 1) + 2.0**-24)
    sizes_M = 255 * lost.noise_N[noisy].to(device)
    return (normal * sizes_M[:, None]).view(len(noisy), *shape)


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


def _remove_colour(view_NHWC: Tensor, positions: Sequence[int]) -> None:
    """Makes views grey, in place."""
    if positions:
        chosen = list(positions)
        luma_C = torch.tensor(LUMA, device=view_NHWC.device)
        grey = (view_NHWC[chosen] * luma_C).sum(-1, keepdim=True)
        view_NHWC[chosen] = grey.expand(-1, -1, -1, view_NHWC.shape[-1])


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


def compress(pixels_NHWC: Tensor, quality_N: Tensor) -> Tensor:
    """Returns images as JPEG gives them back, with colour at half the resolution.

    Does what of a JPEG file loses something: the colour space, subsampling, the cosine transform of
    blocks and its quantization, with libjpeg's scaling of the steps by quality. Runs on any device,
    without a host.

    Args:
        pixels_NHWC: Pixel values, float32, 0 to 255.
        quality_N: Quality of each image, 1 to 100.
    """
    _, height, width, _ = pixels_NHWC.shape
    quality_N = quality_N.to(pixels_NHWC.device)
    to_ycbcr = torch.tensor(_TO_YCBCR, device=pixels_NHWC.device)
    planes_NCHW = (pixels_NHWC.round() @ to_ycbcr.T).permute(0, 3, 1, 2).round()
    # Blocks of colour take in twice as many pixels along each side.
    bottom, right = (-side % (2 * _BLOCK_PX) for side in (height, width))
    planes_NCHW = functional.pad(planes_NCHW, (0, right, 0, bottom), mode="replicate")
    luma_NCHW = _quantized(planes_NCHW[:, :1] - 128, _LUMA_STEPS, quality_N) + 128
    small = functional.avg_pool2d(planes_NCHW[:, 1:], 2).round()
    small = _quantized(small, _CHROMA_STEPS, quality_N)
    chroma_NCHW = functional.interpolate(small, scale_factor=2, mode="bilinear")
    planes = torch.cat([luma_NCHW, chroma_NCHW], dim=1)[:, :, :height, :width]
    to_rgb: Tensor = torch.linalg.inv(torch.tensor(_TO_YCBCR)).to(planes.device)
    return torch.clamp((planes.permute(0, 2, 3, 1) @ to_rgb.T).round(), 0, 255)


def _quantized(planes_NCHW: Tensor, steps: Sequence[int], quality_N: Tensor) -> Tensor:
    """Returns planes about 0 after the quantization of their blocks' cosine transform."""
    scale_N = torch.where(quality_N < 50, 5000 / quality_N, 200 - 2 * quality_N)
    steps_P = torch.tensor(steps, dtype=torch.float32, device=planes_NCHW.device)
    steps_NP = torch.floor((steps_P * scale_N[:, None] + 50) / 100).clamp(1, 255)
    steps_NCHUWV = steps_NP.view(-1, 1, 1, _BLOCK_PX, 1, _BLOCK_PX)
    cosines = _cosines(planes_NCHW.device)
    count, channels, height, width = planes_NCHW.shape
    blocks = planes_NCHW.reshape(
        count, channels, height // _BLOCK_PX, _BLOCK_PX, width // _BLOCK_PX, _BLOCK_PX
    )
    spectrum = torch.einsum("ui,nchiwj,vj->nchuwv", cosines, blocks, cosines)
    spectrum = torch.round(spectrum / steps_NCHUWV) * steps_NCHUWV
    blocks = torch.einsum("ui,nchuwv,vj->nchiwj", cosines, spectrum, cosines)
    return blocks.round().reshape(count, channels, height, width)


def _cosines(device: torch.device) -> Tensor:
    """Returns the orthonormal cosine transform of a block's row, by frequency and position."""
    places = torch.arange(_BLOCK_PX, device=device)
    cosines = torch.cos((2 * places + 1) * places[:, None] * (math.pi / (2 * _BLOCK_PX)))
    cosines = cosines * math.sqrt(2 / _BLOCK_PX)
    cosines[0] /= math.sqrt(2)
    return cosines
