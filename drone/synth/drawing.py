"""Draws images of the four classes: silhouettes over skies, clouds and skylines."""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from drone.labels import CLASSES

Rng = np.random.Generator
Colour = tuple[int, int, int]
Pen = ImageDraw.ImageDraw
Shape = Callable[[Pen, float, Rng], None]

_MAX_DRAWN_PX = 900
"""Maximum longer side that is drawn; larger images are enlarged from it, which costs less."""

_MIN_CONTRAST = 60
"""Minimum mean difference between a shape and what it covers, on the scale 0 to 255: without it one
drawing in ten showed a white bird in a white cloud, which nobody can learn from."""

_CONTRAST_SIDE_PX = 48
"""Side at which the contrast is measured, which costs less."""

_MAX_ATTEMPTS = 8
"""Maximum attempts at a shape that stands out; then the last one is taken as it is."""


def draw(class_name: str, width: int, height: int, rng: Rng) -> Image.Image:
    """Draws an image of a class, RGB.

    Args:
        class_name: One of the four classes.
        width: Width in pixels.
        height: Height in pixels.
        rng: Decides everything else: the same state gives the same image.
    """
    shrink = min(1.0, _MAX_DRAWN_PX / max(width, height))
    size = (max(8, round(width * shrink)), max(8, round(height * shrink)))
    image = _scene(size, rng)
    _add_shape(image, _SHAPES[class_name], rng)
    image = _grain(image, rng)
    return image.resize((width, height), Image.Resampling.BICUBIC) if shrink < 1 else image


def _scene(size: tuple[int, int], rng: Rng) -> Image.Image:
    """Returns a sky with clouds and, in three of four images, a skyline."""
    width, height = size
    # Clear, overcast or evening: red, green and blue overhead and how they change downwards.
    tint = np.array([(-60, -15, 40), (0, 3, 8), (25, -10, -25)])[rng.integers(0, 3)]
    above = np.clip(rng.integers(80, 215) + tint * rng.uniform(0.3, 1.2), 0, 255)
    below = np.clip(above + rng.integers(-40, 70) + rng.integers(-15, 16, 3), 0, 255)
    ramp = np.linspace(0, 1, height)[:, None, None] ** rng.uniform(0.5, 2)
    sky = np.broadcast_to(above * (1 - ramp) + below * ramp, (height, width, 3))
    clouds = _noise(size, int(rng.integers(3, 9)), rng)
    cover = np.clip((clouds - rng.uniform(0.35, 0.65)) * 3, 0, 1)[:, :, None]
    sky = sky * (1 - cover) + rng.integers(170, 256) * cover
    image = Image.fromarray(sky.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.75:
        _ground(image, rng)
    return image


def _noise(size: tuple[int, int], cells: int, rng: Rng) -> NDArray[np.float32]:
    """Returns smooth noise of two octaves, (height, width), 0 to 1."""
    total = np.zeros((size[1], size[0]), np.float32)
    for octave, weight in ((cells, 0.7), (cells * 3, 0.3)):
        coarse = Image.fromarray(rng.random((octave, octave), dtype=np.float32))
        total += weight * np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    return total


def _ground(image: Image.Image, rng: Rng) -> None:
    """Draws a skyline: hills, houses or wires."""
    pen = ImageDraw.Draw(image)
    width, height = image.size
    horizon = height * rng.uniform(0.6, 0.97)
    shade = int(rng.integers(25, 130))
    colour = (shade, min(255, shade + int(rng.integers(-10, 35))), max(0, shade - 20))
    steps = int(rng.integers(4, 24))
    rough = height * rng.uniform(0.02, 0.14)
    line = [(width * i / steps, horizon - rng.uniform(0, rough)) for i in range(steps + 1)]
    if rng.random() < 0.4:
        for (left, top), (right, _) in itertools.pairwise(line):
            pen.rectangle((left, top - rng.uniform(0, rough), right, height), fill=colour)
    pen.polygon([(0, height), *line, (width, height)], fill=colour)
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(1, 4))):
            ends = rng.uniform(0.3, 0.9, 2) * height
            pen.line((0, ends[0], width, ends[1]), fill=_colour(rng, 0, 70), width=1 + width // 300)


def _add_shape(image: Image.Image, shape: Shape, rng: Rng) -> None:
    """Pastes a shape onto the scene, at a size, angle and position drawn from `rng`."""
    side = min(image.size) * rng.uniform(0.6, 0.98)
    for _ in range(_MAX_ATTEMPTS):
        layer = _shape_layer(shape, side, rng)
        free = np.array(image.size) - layer.width
        left, top = (rng.uniform(0, 1, 2) * free).astype(int).tolist()
        covered = image.crop((left, top, left + layer.width, top + layer.height))
        if _contrast(covered, layer) >= _MIN_CONTRAST:
            break
    image.paste(layer, (left, top), layer)


def _shape_layer(shape: Shape, side: float, rng: Rng) -> Image.Image:
    """Returns a rotated shape on a transparent square of about `side` pixels."""
    canvas_px = max(16, round(side * 2))  # Drawn at twice the size and halved: smooth edges.
    layer = Image.new("RGBA", (canvas_px, canvas_px))
    shape(ImageDraw.Draw(layer), canvas_px, rng)
    layer = layer.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = layer.resize((canvas_px // 2,) * 2, Image.Resampling.BOX)
    if rng.random() < 0.3:
        layer = layer.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.002, 0.012)))
    return layer


def _contrast(background: Image.Image, layer: Image.Image) -> float:
    """Returns the mean difference of a shape from what it covers, 0 to 255."""
    factor = max(1, layer.width // _CONTRAST_SIDE_PX)
    rgba = np.asarray(layer.reduce(factor), np.float32)
    covered = np.asarray(background.reduce(factor), np.float32)
    opacity = rgba[..., 3]
    difference = np.abs(rgba[..., :3] - covered).max(axis=-1)
    return float((difference * opacity).sum() / max(1.0, float(opacity.sum())))


def _grain(image: Image.Image, rng: Rng) -> Image.Image:
    """Returns the image with the noise of a sensor."""
    pixels = np.asarray(image).astype(np.int16)
    grain = rng.normal(0, rng.uniform(1, 7), (*pixels.shape[:2], 1))
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def _colour(rng: Rng, low: int, high: int) -> Colour:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def _ellipse(pen: Pen, x: float, y: float, rx: float, ry: float, fill: object) -> None:
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)  # type: ignore[arg-type]


def _quadcopter(pen: Pen, side: float, rng: Rng, *, large: bool) -> None:
    """Draws rotors on arms around a body, seen from an angle.

    Large ones have four, six or eight thin long arms, legs and a camera; small ones are coloured,
    with four thick short arms, a large body and usually rings around the rotors.
    """
    grey = int(rng.choice([25, 50, 200, 235])) if large else None
    colour: Colour = (grey, grey, grey) if grey is not None else _colour(rng, 20, 255)
    dark: Colour = (30, 30, 35)
    middle, tilt = side / 2, rng.uniform(0.25, 0.75)
    arms = int(rng.choice([4, 6, 8])) if large else 4
    reach = side * (rng.uniform(0.36, 0.42) if large else rng.uniform(0.22, 0.30))
    rotor = side * (rng.uniform(0.09, 0.12) if large else rng.uniform(0.11, 0.15))
    width = max(2, round(side * (0.014 if large else 0.035)))
    turn = rng.uniform(0, 2 * math.pi)
    ringed = not large and rng.random() < 0.7
    for arm in range(arms):
        angle = turn + 2 * math.pi * arm / arms
        x, y = middle + reach * math.cos(angle), middle + reach * math.sin(angle) * tilt
        pen.line((middle, middle, x, y), fill=colour, width=width)
        _ellipse(pen, x, y, rotor, rotor * tilt * 0.8, (120, 120, 125, 130))
        if ringed:
            box = (x - rotor, y - rotor * tilt, x + rotor, y + rotor * tilt)
            pen.ellipse(box, outline=colour, width=width)
        _ellipse(pen, x, y, side * 0.014, side * 0.02, dark)
    body = side * (0.085 if large else rng.uniform(0.10, 0.14))
    if large:
        _legs(pen, side, colour, width)
    _ellipse(pen, middle, middle, body, body * max(tilt, 0.45), colour)
    _ellipse(pen, middle + body * 0.5, middle, body * 0.2, body * 0.2, dark)


def _legs(pen: Pen, side: float, colour: Colour, width: int) -> None:
    """Draws two skids and a camera between them."""
    middle = side / 2
    for direction in (-1, 1):
        foot = (middle + direction * side * 0.14, middle + side * 0.22)
        pen.line((middle + direction * side * 0.05, middle, *foot), fill=colour, width=width)
        skid = side * 0.06
        pen.line((foot[0] - skid, foot[1], foot[0] + skid, foot[1]), fill=colour, width=width)
    _ellipse(pen, middle, middle + side * 0.11, side * 0.045, side * 0.045, (15, 15, 18))


def _large_quadcopter(pen: Pen, side: float, rng: Rng) -> None:
    _quadcopter(pen, side, rng, large=True)


def _small_quadcopter(pen: Pen, side: float, rng: Rng) -> None:
    _quadcopter(pen, side, rng, large=False)


def _winged_drone(pen: Pen, side: float, rng: Rng) -> None:
    """Draws a slender body with long straight wings, a tail and a propeller behind."""
    shade = int(rng.integers(70, 240))
    colour: Colour = (shade, shade, min(255, shade + 8))
    middle, span = side / 2, side * rng.uniform(0.40, 0.48)
    sweep, chord = side * rng.uniform(-0.02, 0.12), side * rng.uniform(0.035, 0.06)
    length, thick = side * rng.uniform(0.26, 0.36), side * rng.uniform(0.022, 0.036)
    for direction in (-1, 1):
        tip = middle + direction * span
        wing = [(middle, middle - chord), (tip, middle + sweep - chord * 0.4)]
        wing += [(tip, middle + sweep + chord * 0.3), (middle, middle + chord)]
        pen.polygon(wing, fill=colour)
        back = middle + length
        fin = middle + direction * side * rng.uniform(0.10, 0.15)
        pen.polygon(
            [(middle, back - chord), (fin, back), (fin, back + chord * 0.5), (middle, back)],
            fill=colour,
        )
    _ellipse(pen, middle, middle, thick, length, colour)
    _ellipse(pen, middle, middle - length * 0.8, thick * 1.15, length * 0.2, colour)
    back = middle + length
    pen.line((middle - side * 0.06, back, middle + side * 0.06, back), fill=(60, 60, 60), width=2)


def _bird(pen: Pen, side: float, rng: Rng) -> None:
    """Draws bent tapering wings on a drop-shaped body; one bird or two."""
    tone = int(rng.choice([15, 40, 90, 225]))
    warm = int(rng.integers(0, 30))
    colour: Colour = (tone, max(0, tone - warm // 2), max(0, tone - warm))
    flock = int(rng.choice([1, 1, 1, 1, 2]))
    for _ in range(flock):
        scale = side / flock
        x, y = (side / 2 + rng.uniform(-1, 1, 2) * (side - scale) / 2).tolist()
        _one_bird(pen, x, y, scale, colour, rng)


def _one_bird(pen: Pen, x: float, y: float, scale: float, colour: Colour, rng: Rng) -> None:
    lift, droop = rng.uniform(-0.12, 0.28) * scale, rng.uniform(-0.05, 0.22) * scale
    span, chord = rng.uniform(0.34, 0.46) * scale, rng.uniform(0.07, 0.13) * scale
    for direction in (-1, 1):
        bend = (x + direction * span * 0.45, y - lift)
        tip = (x + direction * span, y - lift + droop)
        rear = (x + direction * span * 0.45, y - lift + chord)
        pen.polygon([(x, y - chord * 0.4), bend, tip, rear, (x, y + chord * 0.7)], fill=colour)
    length = rng.uniform(0.13, 0.2) * scale
    _ellipse(pen, x, y + chord * 0.3, length * 0.35, length, colour)
    _ellipse(pen, x, y - length * 0.8, length * 0.26, length * 0.26, colour)
    fan = [(x, y + length * 0.8), (x - length * 0.5, y + length * 1.6)]
    pen.polygon([*fan, (x + length * 0.5, y + length * 1.6)], fill=colour)


_SHAPES: dict[str, Callable[[Pen, float, Rng], None]] = dict(
    zip(CLASSES, (_bird, _large_quadcopter, _small_quadcopter, _winged_drone), strict=True)
)
