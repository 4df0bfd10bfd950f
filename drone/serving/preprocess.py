"""The one way from bytes to the pixels that the model sees.

Packing for training, evaluation, the servers and the logged model all call `to_pixels`; its
settings travel inside the exported model, so that there is nothing that could drift apart.
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
from PIL import Image, ImageOps, UnidentifiedImageError

from drone.errors import ConfigError, ImageError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "PPM", "BMP", "TIFF", "AVIF")
"""What Pillow may open. A whitelist: some of its other readers run outside programs."""

# The limit of `Preprocessing.max_pixels`, checked before anything is decoded, replaces Pillow's.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of damaged EXIF and the like; a picture that still opens is fine.
warnings.filterwarnings("ignore", module=r"PIL\.")

DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    MemoryError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # of AVIF
    # A tag of another type than Pillow expects, as a TIFF or EXIF may have.
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
"""What Pillow raises on damaged pictures and damaged EXIF."""

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How bytes become pixels."""

    side_px: int = 224
    """Side of the square that the picture is squashed to."""

    resampling: str = "bilinear"
    """Filter of the one resize, antialiased except for `nearest`."""

    max_bytes: int = 64 * 2**20
    """A longer file is refused unread."""

    max_pixels: int = 64_000_000
    """A picture whose header promises more is refused before it is decoded."""

    min_side_px: int = 8
    """A picture with a shorter side holds nothing to recognise and is refused."""

    def __post_init__(self) -> None:
        for name in ("side_px", "max_bytes", "max_pixels", "min_side_px"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.resampling not in RESAMPLING:
            allowed = ", ".join(RESAMPLING)
            raise ConfigError(f"resampling is {self.resampling!r}; allowed are {allowed}.")

    def to_json(self) -> str:
        """The settings as one line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """The settings that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(**values)


def to_pixels(
    data: bytes, settings: Preprocessing, sides_px: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """The pixels that the model sees, (side, side, 3) uint8 RGB.

    Args:
        data: the content of a file.
        settings: how bytes become pixels.
        sides_px: of a model of mixed resolutions; the picture gets the one nearest to its size.
            Without them it gets the side of the settings.

    Raises:
        ImageError: the bytes give no picture; it says why.
    """
    return to_square(open_header(data, settings), settings, sides_px)


def to_square(
    header: Image.Image, settings: Preprocessing, sides_px: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """What `to_pixels` gives, of a picture that `open_header` has opened."""
    image = load(header)
    if not sides_px:
        return resize(image, settings)
    side_px = sides_px[int(nearest_side(max(image.size), sides_px))]
    return resize(image, replace(settings, side_px=side_px))


def nearest_side(longer_sides_px: ArrayLike, sides_px: Sequence[int]) -> NDArray[np.int64]:
    """Index of the side that is nearest to the longer side of each picture; ties go down.

    Args:
        longer_sides_px: of the pictures as they are, any shape.
        sides_px: ascending.
    """
    distances = np.abs(np.asarray(longer_sides_px)[..., None] - np.array(sides_px))
    nearest: NDArray[np.int64] = distances.argmin(axis=-1)
    return nearest


def resize(image: Image.Image, settings: Preprocessing) -> NDArray[np.uint8]:
    """An RGB picture squashed to the model's square, (side_px, side_px, 3) uint8."""
    square = image.resize((settings.side_px,) * 2, RESAMPLING[settings.resampling])
    return np.asarray(square)


def decode(data: bytes, settings: Preprocessing) -> Image.Image:
    """The first frame of a picture, upright, in 8-bit RGB with alpha laid over white.

    Raises:
        ImageError: the bytes give no picture; it says why.
    """
    return load(open_header(data, settings))


def load(image: Image.Image) -> Image.Image:
    """What `decode` gives, of a picture that `open_header` has opened.

    Raises:
        ImageError: it is damaged, or of a mode that is not read.
    """
    try:
        # Always decode here: a truncated JPEG passes open() and even verify().
        image.load()
        return _as_rgb(_upright(image))
    except DAMAGE as error:
        raise _broken() from error


def load_roughly(image: Image.Image, about_px: int, mode: str = "RGB") -> Image.Image:
    """Like `load`, for where a rough look is enough: a JPEG is decoded to a smaller size.

    The size is the smallest of all, 1/2, 1/4 and 1/8 whose sides are at least `about_px`. All of
    the file's data are read, so that damage shows as it does in `load`.

    Args:
        image: that `open_header` has opened.
        about_px: wanted sides.
        mode: "RGB", or "L" for grey, which spares a JPEG its colours.

    Raises:
        ImageError: it is damaged, or of a mode that is not read.
    """
    image.draft("L" if mode == "L" and image.mode == "RGB" else None, (about_px, about_px))
    if mode == "L" and image.mode == "L" and not image.has_transparency_data:
        try:
            image.load()
            return _upright(image)
        except DAMAGE as error:
            raise _broken() from error
    return load(image).convert(mode)


def open_header(data: bytes, settings: Preprocessing) -> Image.Image:
    """The picture with only its header read and its size checked.

    The format is told from the content, never from a name.

    Raises:
        ImageError: empty, not a picture of a known kind, too large or too small.
    """
    if not data:
        raise ImageError(400, "empty", "The file is empty.")
    if len(data) > settings.max_bytes:
        limit = settings.max_bytes / 2**20
        size = len(data) / 2**20
        raise ImageError(413, "too-large", f"The file has {size:.1f} MiB; at most {limit:g} MiB.")
    image = _identify(data)
    if image.width * image.height > settings.max_pixels:
        raise ImageError(
            413,
            "too-large",
            f"The picture has {image.width} x {image.height} pixels; "
            f"at most {settings.max_pixels / 1e6:g} million.",
        )
    if min(image.size) < settings.min_side_px:
        raise ImageError(
            422,
            "too-small",
            f"The picture has {image.width} x {image.height} pixels; "
            f"each side needs at least {settings.min_side_px}.",
        )
    return image


def _identify(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if looks_like_image(data):
            raise _broken() from error
        raise ImageError(
            415, "non-media", f"Not a picture of a known kind ({', '.join(FORMATS)})."
        ) from error
    except DAMAGE as error:
        raise _broken() from error


_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


def looks_like_image(data: bytes) -> bool:
    """Whether the first bytes promise a picture, even if the rest is broken."""
    return data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGE:
        return image  # Damaged EXIF: the pixels themselves are fine.


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "LAB", "HSV"):
        raise ImageError(415, "unsupported", f"Pictures of mode {image.mode} are not read.")
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to 8, which Pillow's own conversion clips to white."""
    values = np.asarray(image)
    # Mode I has 32 bits: a PGM of 16 bits comes as I, and so do files of 8 bits in disguise.
    if image.mode != "I" or values.max(initial=0) > 255:
        values = values >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _broken() -> ImageError:
    return ImageError(422, "undecodable", "The picture is damaged or cut short.")
