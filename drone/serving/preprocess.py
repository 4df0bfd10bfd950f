"""The one way from an image file's bytes to the pixels that the model sees.

Dataset preparation, evaluation, the HTTP app, the Lambda function and the MLflow model all call
`to_pixels`. Its settings are stored in the exported model, so training and serving cannot drift.
"""

import io
import json
import struct
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from drone.errors import ConfigError, ImageError
from drone.serving import decode_limits

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "PPM", "BMP", "TIFF", "AVIF")
"""Formats that Pillow may open. An allow-list: some of its other readers run external programs."""

# `Preprocessing.max_pixels` replaces Pillow's limit; it is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about damaged EXIF and the like, although the image itself can be decoded.
warnings.filterwarnings("ignore", module=r"PIL\.")

DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    MemoryError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # Raised by the AVIF reader.
    # Raised for a TIFF or EXIF tag whose type is not the one that Pillow expects.
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
"""What Pillow raises for damaged images and damaged EXIF."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""

_BAND_ROWS = 256

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How bytes become pixels."""

    side_px: int = 224
    """Side in pixels of the square that every image is resized to, ignoring its aspect ratio."""

    resampling: str = "bilinear"
    """Resampling filter: bilinear, bicubic (both antialiased) or nearest."""

    max_bytes: int = 64 * 2**20
    """Maximum file size in bytes; larger files are rejected undecoded."""

    max_pixels: int = 64_000_000
    """Maximum width times height; larger images are rejected by their header, undecoded."""

    min_side_px: int = 8
    """Minimum width and height in pixels; smaller images are rejected."""

    def __post_init__(self) -> None:
        for name in ("side_px", "max_bytes", "max_pixels", "min_side_px"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.resampling not in _RESAMPLING:
            allowed = ", ".join(_RESAMPLING)
            raise ConfigError(f"resampling is {self.resampling!r}; allowed are {allowed}.")

    def to_json(self) -> str:
        """Returns the settings as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """Returns the settings that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(**values)


def to_pixels(
    data: bytes, settings: Preprocessing, sides_px: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Decodes and resizes an image to the model's input, (side, side, 3) uint8 RGB.

    Args:
        data: Content of the image file.
        settings: How bytes become pixels.
        sides_px: Input sides of a multi-resolution model, ascending. The image is resized to the
            side nearest to its longer side; without them, to `settings.side_px`.

    Raises:
        ImageError: The bytes are not an image that the model accepts.
    """
    return decode_and_resize(open_header(data, settings), settings, sides_px)


def decode_and_resize(
    image: Image.Image, settings: Preprocessing, sides_px: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Like `to_pixels`, for an image that `open_header` opened."""
    image = _decode_opened(image)
    if not sides_px:
        return _resize(image, settings)
    side_px = sides_px[int(nearest_side(max(image.size), sides_px))]
    return _resize(image, replace(settings, side_px=side_px))


def nearest_side(longer_sides_px: ArrayLike, sides_px: Sequence[int]) -> NDArray[np.int64]:
    """Returns the index of the side nearest to each image's longer side; ties go to the smaller.

    Args:
        longer_sides_px: Longer sides of the original images in pixels, any shape.
        sides_px: Sides to choose from, ascending.
    """
    distances = np.abs(np.asarray(longer_sides_px)[..., None] - np.array(sides_px))
    nearest: NDArray[np.int64] = distances.argmin(axis=-1)
    return nearest


def decode(data: bytes, settings: Preprocessing) -> Image.Image:
    """Decodes the first frame: EXIF rotation applied, 8-bit RGB, alpha composited over white.

    Raises:
        ImageError: The bytes are not an image that the model accepts.
    """
    return _decode_opened(open_header(data, settings))


def decode_reduced(image: Image.Image, min_side_px: int, mode: str = "RGB") -> Image.Image:
    """Decodes an opened image, a JPEG at the smallest sufficient scale, which is faster.

    The scale is the smallest of 1, 1/2, 1/4 and 1/8 that leaves both sides at least
    `min_side_px`. The whole file is read, so damage is found as in `decode`.

    Args:
        image: Image that `open_header` opened.
        min_side_px: Minimum sides of the result, unless the image itself is smaller.
        mode: "RGB", or "L" for greyscale, which skips the colour channels of a JPEG.

    Raises:
        ImageError: The image is damaged or its mode is not supported.
    """
    # Only JPEG can decode at a smaller scale; other formats ignore the draft.
    image.draft("L" if mode == "L" and image.mode == "RGB" else None, (min_side_px, min_side_px))
    if mode == "L" and image.mode == "L" and not image.has_transparency_data:
        try:
            image.load()
            return _apply_exif_rotation(image)
        except DECODE_ERRORS as error:
            raise _undecodable() from error
    return _decode_opened(image).convert(mode)


def open_header(data: bytes, settings: Preprocessing) -> Image.Image:
    """Opens an image, reading and checking only its header.

    The format is detected from the content, never from a file name or Content-Type.

    Raises:
        ImageError: The data is empty, not a supported format, too large or too small.
    """
    if not data:
        raise ImageError("empty", "The file is empty.")
    if len(data) > settings.max_bytes:
        raise ImageError(
            "too-large",
            f"The file has {len(data) / 2**20:.1f} MiB; "
            f"the limit is {settings.max_bytes / 2**20:g} MiB.",
        )
    decode_limits.check_header(data)
    image = _identify(data)
    size = f"The image has {image.width} x {image.height} pixels"
    if image.width * image.height > settings.max_pixels:
        limit = f"{settings.max_pixels / 1e6:g} million"
        raise ImageError("too-large", f"{size}; the limit is {limit}.")
    if min(image.size) < settings.min_side_px:
        limit = f"{settings.min_side_px} x {settings.min_side_px}"
        raise ImageError("too-small", f"{size}; the minimum is {limit}.")
    decode_limits.check_decoding(image, data)
    return image


def _decode_opened(image: Image.Image) -> Image.Image:
    try:
        # A truncated JPEG passes open() and even verify(); only decoding detects it.
        image.load()
        return _to_rgb(_apply_exif_rotation(image))
    except DECODE_ERRORS as error:
        raise _undecodable() from error


def _resize(image: Image.Image, settings: Preprocessing) -> NDArray[np.uint8]:
    square = image.resize((settings.side_px, settings.side_px), _RESAMPLING[settings.resampling])
    return np.asarray(square)


def _identify(data: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        if _has_image_signature(data):
            raise _undecodable() from error
        formats = ", ".join(_FORMATS)
        raise ImageError("non-media", f"Not an image of a supported format ({formats}).") from error
    except DECODE_ERRORS as error:
        raise _undecodable() from error


_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


def _has_image_signature(data: bytes) -> bool:
    return data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _apply_exif_rotation(image: Image.Image) -> Image.Image:
    """Like Pillow's `exif_transpose`, which would also copy the image and rewrite its EXIF."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        method = _TRANSPOSITIONS.get(orientation)
    except DECODE_ERRORS:
        return image  # Damaged EXIF does not make the pixels unusable.
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "LAB", "HSV"):
        raise ImageError("unsupported", f"Images of mode {image.mode} are not supported.")
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Composites over white, in bands of rows: all at once would take three copies more."""
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND_ROWS):
        box = (0, top, image.width, min(top + _BAND_ROWS, image.height))
        band = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        flat.paste(Image.alpha_composite(white, band).convert("RGB"), box)
    return flat


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Converts 16-bit grey to 8 bits; Pillow's own conversion clips everything to white."""
    values = np.asarray(image)
    # Mode I has 32 bits: Pillow uses it for 16-bit PGM, and also for some files with 8-bit values.
    if image.mode != "I" or values.max(initial=0) > 255:
        values = values >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _undecodable() -> ImageError:
    return ImageError("undecodable", "The image is damaged or truncated.")
