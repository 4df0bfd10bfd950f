"""Images as a camera shows them under worse conditions, by stated transformations.

Each takes a square image and a level; the severities of a condition are its levels in order, after
Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations". Lengths are in pixels of an image of 224 px, and scale with its side.
Axes: H and W pixels, C channels (RGB).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

REFERENCE_PX = 224
"""Side of the images whose pixels lengths are given in."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of ITU-R BT.601."""

HAZE_GREY = 0.85
"""Brightness of haze, on the scale 0 to 1."""

_PHOTONS = 255.0
"""Photons that a fully lit pixel counts: their number varies by its square root."""


@dataclass(frozen=True)
class Condition:
    """A condition, and the levels at which a model is evaluated under it."""

    name: str
    """Key of metrics."""

    text: str
    """What the levels are, with {} for one of them."""

    levels: tuple[float, ...]
    """From mild to severe."""

    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    """Returns an image, (H, W, 3) uint8, at a level; what is random comes from the generator."""


def reduced(image_HWC: Pixels, side_px: float, _: np.random.Generator) -> Pixels:
    """Returns the image as if it had been `side_px` wide and was enlarged: an object far away."""
    side = image_HWC.shape[0]
    small = max(1, round(side_px * side / REFERENCE_PX))
    if small >= side:
        return image_HWC
    shrunk = cv2.resize(image_HWC, (small, small), interpolation=cv2.INTER_AREA)
    return _uint8(cv2.resize(shrunk, (side, side), interpolation=cv2.INTER_LINEAR))


def blurred(image_HWC: Pixels, sigma_px: float, _: np.random.Generator) -> Pixels:
    """Returns the image out of focus: a Gaussian blur."""
    sigma = sigma_px * image_HWC.shape[0] / REFERENCE_PX
    if sigma <= 0:
        return image_HWC
    return _uint8(cv2.GaussianBlur(image_HWC, (0, 0), sigma, borderType=cv2.BORDER_REFLECT))


def compressed(image_HWC: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    """Returns the image after JPEG compression of a quality from 1 to 100."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=round(quality))
    return np.asarray(Image.open(buffer))


def noisy(image_HWC: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Returns the image with Gaussian noise; `sigma` is a share of full scale."""
    noise_HWC = rng.standard_normal(image_HWC.shape, np.float32)
    return _uint8(image_HWC + 255 * sigma * noise_HWC)


def hazy(image_HWC: Pixels, transmission: float, _: np.random.Generator) -> Pixels:
    """Returns the image behind haze that lets a share of its light through (Koschmieder 1924)."""
    return _uint8(image_HWC * transmission + 255 * HAZE_GREY * (1 - transmission))


def dark(image_HWC: Pixels, exposure: float, rng: np.random.Generator) -> Pixels:
    """Returns the image at a share of its light, with the noise of the photons that are left."""
    photons_HWC = image_HWC * np.float32(exposure * _PHOTONS / 255)
    return _uint8(rng.poisson(photons_HWC) * (255 / _PHOTONS))


def desaturated(image_HWC: Pixels, saturation: float, _: np.random.Generator) -> Pixels:
    """Returns the image with a share of its colour; 0 is grey."""
    grey_HW1 = (image_HWC @ LUMA)[..., None]
    return _uint8(grey_HW1 + saturation * (image_HWC - grey_HW1))


def infrared(image_HWC: Pixels, sigma_px: float, rng: np.random.Generator) -> Pixels:
    """Returns the image in the tones of a thermal camera: what is dark in the sky is bright.

    Grey, inverted, of half the contrast, and blurred as by a sensor of few pixels.
    """
    grey_HWC = desaturated(image_HWC, 0.0, rng)
    return blurred(_uint8(127.5 + (127.5 - grey_HWC.astype(np.float32)) / 2), sigma_px, rng)


CONDITIONS = (
    Condition("size", "object {:.0f} px wide", (128, 96, 64, 48, 32, 24, 16, 8), reduced),
    Condition("blur", "blur of {:g} px", (1, 2, 3, 4, 6), blurred),
    Condition("jpeg", "JPEG of quality {:.0f}", (25, 18, 15, 10, 7), compressed),
    Condition("noise", "noise of {:.0%}", (0.08, 0.12, 0.18, 0.26, 0.38), noisy),
    Condition("haze", "haze that lets {:.0%} through", (0.8, 0.6, 0.4, 0.25, 0.15), hazy),
    Condition("darkness", "{:.0%} of the light", (0.5, 0.3, 0.18, 0.1, 0.05), dark),
    Condition("grey", "{:.0%} of the colour", (0.8, 0.6, 0.4, 0.2, 0.0), desaturated),
    Condition("infrared", "infrared-like, blur of {:g} px", (0, 0.5, 1, 1.5, 2), infrared),
)
"""The conditions of the report's card."""


def _uint8(values: NDArray[np.generic]) -> Pixels:
    """Rounds to the nearest of 0 to 255."""
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    return np.clip(np.rint(values.astype(np.float32)), 0, 255).astype(np.uint8)
