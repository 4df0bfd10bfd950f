"""Encodes drawings: as JPEG, as unusual but valid files, and as files that hold no usable image."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

Encoder = Callable[[Image.Image], bytes]


def encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    """Returns the image as a file of a format; the options are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image) -> bytes:
    """Returns the image as JPEG."""
    return encode(image, "JPEG", quality=88)


def _rotated_jpeg(image: Image.Image) -> bytes:
    """Stored rotated by 90 degrees, with the EXIF orientation that undoes it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = image.transpose(Image.Transpose.ROTATE_90)
    return encode(stored, "JPEG", quality=88, exif=exif)


def _with_alpha(image: Image.Image) -> bytes:
    fade = Image.linear_gradient("L").resize(image.size).point(lambda value: 255 - value // 4)
    clear = image.copy()
    clear.putalpha(fade)
    return encode(clear, "PNG")


def _grey_16_bit(image: Image.Image) -> bytes:
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encode(Image.fromarray(grey), "PNG")


UNUSUAL_KINDS: dict[str, tuple[str, Encoder]] = {
    "gif": (".gif", lambda image: encode(image, "GIF")),
    "jfif": (".jfif", jpeg),
    "webp": (".webp", lambda image: encode(image, "WEBP", quality=85)),
    "ppm": (".ppm", lambda image: encode(image.reduce(2), "PPM")),
    "bmp": (".bmp", lambda image: encode(image.reduce(2), "BMP")),
    "PNG named jpg": (".jpg", lambda image: encode(image, "PNG")),
    "JPEG named png": (".png", jpeg),
    "EXIF rotation": (".jpg", _rotated_jpeg),
    "CMYK": (".jpg", lambda image: encode(image.convert("CMYK"), "JPEG", quality=88)),
    "alpha": (".png", _with_alpha),
    "16 bit": (".png", _grey_16_bit),
    "grey": (".jpg", lambda image: encode(image.convert("L"), "JPEG", quality=88)),
    "palette": (".png", lambda image: encode(image.quantize(64), "PNG")),
    "comma": (".jpg", jpeg),
    "non-ascii": (".jpg", jpeg),
    "long name": (".jpg", jpeg),
    "upper case": (".JPG", jpeg),
}
"""File name suffix and encoder of each kind of valid file that careless code trips over."""


def file_name(stem: str, kind: str) -> str:
    """Returns the name of a file of an unusual kind."""
    suffix = UNUSUAL_KINDS[kind][0]
    if kind == "comma":
        return f"{stem}, seen from below, evening{suffix}"
    if kind == "non-ascii":
        return f"{stem} žluťoučký кот 鳥{suffix}"
    if kind == "long name":
        return (stem + "-" + "a-very-long-name-" * 12)[:188] + suffix
    return stem + suffix


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _bad_header(image: Image.Image) -> bytes:
    data = bytearray(encode(image, "PNG"))
    data[30] ^= 0xFF  # Byte 30 is in the checksum of the first chunk.
    return bytes(data)


DAMAGES: tuple[tuple[str, Encoder], ...] = (
    (".jpg", lambda image: _truncated(jpeg(image))),
    (".png", lambda image: _truncated(encode(image, "PNG"))),
    (".webp", lambda image: _truncated(encode(image, "WEBP"))),
    (".png", _bad_header),
)
"""File name suffix and encoder of each kind of damaged image."""

NO_IMAGES = (
    (".txt", "a list of addresses", "non-media"),
    (".ipynb", '{"cells": [], "nbformat": 4}', "non-media"),
    (".svg", '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>', "unsupported"),
    (".jpg", "<!DOCTYPE html><html><body>404 Not Found</body></html>", "non-media"),
)
"""File name suffix, content and reason to expect of files that are no images."""
