"""The one way from an image file's bytes to the pixels that the model sees.

Dataset preparation, evaluation, the HTTP app, the Lambda function and the MLflow model all call
`to_pixels`. Its settings are stored in the exported model, so training and serving cannot drift.
"""

import contextlib
import functools
import io
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from drone.errors import ConfigError, ImageError
from drone.serving import decode_limits
from drone.serving.bit_depth import to_8_bits
from drone.serving.blank import is_blank
from drone.serving.metadata import DECODE_ERRORS, without_metadata
from drone.serving.unsupported import check_supported, check_tiff, is_heic

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "PPM", "BMP", "TIFF", "AVIF")
"""Formats that Pillow may open. An allow-list: some of its other readers run external programs."""

# `Preprocessing.max_pixels` replaces Pillow's limit; it is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about damaged EXIF and the like, although the image itself can be decoded.
warnings.filterwarnings("ignore", module=r"PIL\.")

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

_OVERSAMPLING = 3
"""How many times as large as the model's input a JPEG is decoded at least, if it is larger. At 2,
the confidence would change by up to 0.04, at 3 by less than 0.01."""

_BAND_ROWS = 256

_MAX_FRAMES, _MAX_FRAME_PIXELS = 16, 100_000_000
"""Frames of an animation or pages of a TIFF that are searched for one that is not blank, and their
pixels together."""

_LOW_BYTES = {
    ";16B": ";16L",
    ";16L": ";16B",
    ";16N": ";16B" if sys.byteorder == "little" else ";16L",
}
"""Pillow unpacks the high byte of 16-bit colours; these raw modes unpack the other one."""

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
    return resize(decode_input(open_header(data, settings), settings, sides_px), settings, sides_px)


def decode_input(
    image: Image.Image, settings: Preprocessing, sides_px: Sequence[int] = ()
) -> Image.Image:
    """Decodes an opened image for `resize`, a JPEG at a reduced scale where that suffices.

    The result differs from that of a whole image by less than half a grey level in the mean. A
    multi-resolution model takes images at their own sizes, so they are decoded whole.

    Raises:
        ImageError: The image is damaged or its mode is not supported.
    """
    if sides_px or settings.resampling == "nearest":
        return decode_opened(image)
    return decode_reduced(image, _OVERSAMPLING * settings.side_px)


def resize(
    image: Image.Image, settings: Preprocessing, sides_px: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Like `to_pixels`, for an image that `decode_input` decoded, or a part of a whole one."""
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
    """Decodes an image: EXIF rotation applied, 8-bit RGB, alpha composited over white.

    Of an animation the first frame counts that is not blank, of the first 16.

    Raises:
        ImageError: The bytes are not an image that the model accepts.
    """
    return decode_opened(open_header(data, settings))


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
    if image.format == "JPEG":  # A HEIC would give a thumbnail that is stored beside the image.
        draft_mode = "L" if mode == "L" and image.mode == "RGB" else None
        image.draft(draft_mode, (min_side_px, min_side_px))
    if mode == "L" and image.mode == "L" and image.format == "JPEG":
        try:
            image.load()
            return _apply_exif_rotation(image)
        except DECODE_ERRORS as error:
            raise _undecodable() from error
    return decode_opened(image).convert(mode)


def open_header(data: bytes, settings: Preprocessing) -> Image.Image:
    """Opens an image, reading and checking only its header.

    The format is detected from the content, never from a file name or Content-Type.

    Raises:
        ImageError: The data is empty, not a supported format, too large or too small, or would
            take too long to decode.
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
    check_supported(data, reads_heic)
    data = without_metadata(data)
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


@functools.cache
def _heif_plugin() -> Any:
    """Returns the package that reads HEIC; None where it is not installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        return pillow_heif
    return None


def reads_heic() -> bool:
    """Whether HEIC is read: the package pillow-heif, which nothing else needs, is installed."""
    return _heif_plugin() is not None


def decode_opened(image: Image.Image) -> Image.Image:
    """Like `decode`, for an image that `open_header` opened."""
    try:
        first = _decode_frame(image)
        # Of a GIF, Pillow would read on to tell whether it is animated; others say so.
        may_move = image.format == "GIF" or getattr(image, "is_animated", False)
        if not may_move or not is_blank(first):
            return first
        first = first.copy()  # Seeking changes it.
        return _first_shown_frame(image) or first
    except DECODE_ERRORS as error:
        raise _undecodable() from error


def _decode_frame(image: Image.Image) -> Image.Image:
    depth, source = _declared_depth(image), getattr(image, "fp", None)
    raw_mode = _raw_mode(image)
    # A truncated JPEG passes open() and even verify(); only decoding detects it.
    image.load()
    if raw_mode[-4:] in _LOW_BYTES and image.mode in ("RGB", "RGBA") and source:
        image = _from_16_bit_colour(image, source, raw_mode)
    return _to_rgb(_apply_exif_rotation(image), depth)


def _first_shown_frame(image: Image.Image) -> Image.Image | None:
    """Returns the first later frame that is not blank; None if there is none within the bounds."""
    num_frames = min(_MAX_FRAMES, _MAX_FRAME_PIXELS // (image.width * image.height))
    # The first frame is whole: damage of later ones is no loss.
    with contextlib.suppress(ImageError, *DECODE_ERRORS):
        for number in range(1, num_frames):
            image.seek(number)
            frame = _decode_frame(image)
            if not is_blank(frame):
                return frame
    return None


def _resize(image: Image.Image, settings: Preprocessing) -> NDArray[np.uint8]:
    square = image.resize((settings.side_px, settings.side_px), _RESAMPLING[settings.resampling])
    return np.asarray(square)


def _identify(data: bytes) -> ImageFile.ImageFile:
    try:
        if is_heic(data):
            heic: ImageFile.ImageFile = _heif_plugin().HeifImageFile(io.BytesIO(data))
            return heic
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        check_tiff(data)
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


def _to_rgb(image: Image.Image, depth: int | None) -> Image.Image:
    if image.mode in ("F", "LAB", "HSV"):
        raise ImageError(
            "unsupported",
            f"Images of mode {image.mode} are not supported. Convert the file to 8 bits, for "
            f"example with `magick FILE -depth 8 image.png`.",
        )
    if image.mode.startswith("I"):
        image = Image.fromarray(to_8_bits(np.asarray(image), depth))
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


def _declared_depth(image: Image.Image) -> int | None:
    """Returns the bits per value that an opened file names; None if it may use fewer."""
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(258) in (12, (12,)):
        return 12
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if image.format == "PPM" and tiles else ""
    # Pillow has scaled a PGM with another maximum than 65,535 to 16 bits.
    return 16 if isinstance(args, tuple) else None


def _raw_mode(image: Image.Image) -> str:
    """Returns how the pixels of an opened file are packed."""
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _from_16_bit_colour(image: Image.Image, source: IO[bytes], raw_mode: str) -> Image.Image:
    """Scales 16-bit colours of which Pillow has kept the high bytes, where those show little."""
    if not _shows_little(image):
        return image
    source.seek(0)
    again = Image.open(source, formats=(str(image.format),))
    tile = again.tile[0]
    low_mode = raw_mode[:-4] + _LOW_BYTES[raw_mode[-4:]]
    args = (low_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else low_mode
    again.tile = [tile._replace(args=args)]
    again.load()
    values_HWC = np.asarray(image)[..., :3].astype(np.uint16) << 8
    values_HWC |= np.asarray(again)[..., :3]
    again.close()
    scaled = Image.fromarray(to_8_bits(values_HWC))
    if image.mode == "RGBA":
        scaled.putalpha(image.getchannel("A"))
    # Into the same image, which knows its orientation.
    image.paste(scaled)
    return image


def _shows_little(image: Image.Image) -> bool:
    """Whether the high bytes of 16-bit colours use a part of their range only."""
    high_HWC = np.asarray(image)[..., :3]
    # As in `to_8_bits`: less than an eighth of the range, or no more than 14 bits.
    return bool(np.ptp(high_HWC) < 32 or high_HWC.max() < 64)


def _undecodable() -> ImageError:
    return ImageError("undecodable", "The image is damaged or truncated.")
