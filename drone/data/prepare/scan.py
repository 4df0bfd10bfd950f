"""What is in the files of raw folders: each is described by one pure function."""

import contextlib
import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from drone.data.prepare.listing import RawFile
from drone.data.prepare.perceptual_hash import perceptual_hash
from drone.data.prepare.roots import Opener, open_root
from drone.errors import ImageError
from drone.serving.blank import SIDE_PX, is_blank
from drone.serving.metadata import DECODE_ERRORS, coded_image
from drone.serving.preprocess import Preprocessing, decode, decode_reduced, open_header

UNREADABLE = "unreadable"
"""Problem of a file that the operating system or the archive does not let us read."""

BLANK = "blank"
"""Problem of an image that shows nothing; serving answers it all the same."""

_MEASURE_PX = SIDE_PX
"""Side of the grey square on which sharpness and brightness are measured."""


@dataclass(frozen=True, kw_only=True)
class ScanRecord:
    """What the scan of one file gave."""

    root: str
    path: str
    class_name: str
    kind: str = ""
    """Kind of a negative; empty for files of classes."""

    size_bytes: int
    md5: str
    """md5 of the file's bytes, hexadecimal; empty if the file is unreadable or too large."""

    content: str
    """Hash of the pixels, hexadecimal: equal for files that differ in metadata or container only.
    Of a JPEG it is that of the coded data and the orientation. Empty if there is no image."""

    phash: str
    """Perceptual hash of the decoded image, hexadecimal; empty if there is none."""

    format: str
    """Pillow's name of the content's format ("JPEG"); empty if there is no image."""

    mode: str
    """Pixel mode in the file ("RGB", "CMYK", "I;16", ...)."""

    width: int
    height: int
    """Size in pixels after EXIF rotation, of the frame that counts; 0 if there is no image."""

    orientation: int
    """EXIF orientation, 1 to 8; 0 if the file has none."""

    camera: str
    """EXIF make and model; empty if the file has none."""

    sharpness: float
    """Variance of the Laplacian of the grey image at 128 x 128, values 0 to 255 (Pech-Pacheco
    et al. 2000). Low for blurred images; 0 if there is no image."""

    brightness: float
    """Mean of the grey image, 0 black to 1 white; 0 if there is no image."""

    problem: str
    """Empty for a good image, else one of `ImageError.REASONS`, "unreadable" or "blank"."""

    detail: str
    """The problem in a sentence."""


def scan_file(raw_file: RawFile, settings: Preprocessing, opener: Opener = open_root) -> ScanRecord:
    """Reads, decodes and describes one file.

    Never raises for a bad file: it becomes a record with its problem.
    """
    try:
        data = opener(raw_file.root).read(raw_file.path, settings.max_bytes)
    except OSError as error:
        detail = f"Cannot be read: {error.strerror or error}."
        return _problem_record(raw_file, 0, "", UNREADABLE, detail)
    if len(data) > settings.max_bytes:
        # Only the first max_bytes + 1 bytes were read, so the size is the one that was listed.
        size = max(raw_file.size_bytes, len(data))
        limit = f"the limit is {settings.max_bytes / 2**20:g} MiB"
        detail = f"The file has {size / 2**20:.0f} MiB; {limit}."
        return _problem_record(raw_file, size, "", "too-large", detail)
    # Not for security, which lets it run where FIPS rules forbid md5.
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    try:
        return _image_record(raw_file, data, md5, settings)
    except ImageError as error:
        return _problem_record(raw_file, len(data), md5, error.reason, str(error))


def _image_record(raw_file: RawFile, data: bytes, md5: str, settings: Preprocessing) -> ScanRecord:
    header = open_header(data, settings)
    orientation, camera = _exif(header)
    # Reduced decoding changes the header's mode, so it is read before.
    image_format, mode = header.format or "", header.mode
    if image_format == "JPEG":
        # EXIF orientations 5 to 8 are turned by 90 degrees.
        width, height = header.size[::-1] if orientation >= 5 else header.size
        # As grey, and at a reduced scale: the greater part of a scan is decoding JPEG.
        grey = decode_reduced(header, _MEASURE_PX, "L")
        content = _digest(f"JPEG {max(orientation, 1)}", coded_image(data))
        # The full image only where the grey one shows nothing: colours may be as bright as others.
        square = _square(grey)
        shows_nothing = is_blank(square) and is_blank(decode(data, settings))
    else:
        image = decode_reduced(header, _MEASURE_PX)
        width, height = image.size
        grey = image.convert("L")
        square = _square(grey)
        content = _digest(f"RGB {width} {height}", image.tobytes())
        shows_nothing = is_blank(image)
    if shows_nothing:
        detail = "The image is blank: it shows one colour only."
        return _problem_record(raw_file, len(data), md5, BLANK, detail)
    values = np.asarray(square, dtype=np.float32)
    return ScanRecord(
        root=raw_file.root,
        path=raw_file.path,
        class_name=raw_file.class_name,
        kind=raw_file.kind,
        size_bytes=len(data),
        md5=md5,
        content=content,
        phash=perceptual_hash(grey).hex(),
        format=image_format,
        mode=mode,
        width=width,
        height=height,
        orientation=orientation,
        camera=camera,
        sharpness=round(_sharpness(values), 2),
        brightness=round(float(values.mean()) / 255, 4),
        problem="",
        detail="",
    )


def _square(grey: Image.Image) -> Image.Image:
    return grey.resize((_MEASURE_PX, _MEASURE_PX), Image.Resampling.BOX)


def _digest(kind: str, data: bytes) -> str:
    """Returns the hash of an image's content, 32 hexadecimal digits."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    digest.update(data)
    return digest.hexdigest()


def _sharpness(grey_HW: np.ndarray) -> float:
    neighbours = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:]
    return float((neighbours - 4 * grey_HW[1:-1, 1:-1]).var())


def _exif(header: Image.Image) -> tuple[int, str]:
    """Returns orientation and camera; damaged EXIF counts as none."""
    orientation, camera = 0, ""
    with contextlib.suppress(*DECODE_ERRORS):
        exif = header.getexif()
        value = exif.get(ExifTags.Base.Orientation, 0)
        orientation = value if value in range(1, 9) else 0
        tags = (exif.get(tag, "") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
        text = " ".join(str(tag).strip(" \0") for tag in tags)
        # Cameras write control characters and padding; a manifest is no place for them.
        camera = "".join(letter for letter in text if letter.isprintable()).strip()[:80]
    return orientation, camera


def _problem_record(
    raw_file: RawFile, size_bytes: int, md5: str, problem: str, detail: str
) -> ScanRecord:
    return ScanRecord(
        root=raw_file.root,
        path=raw_file.path,
        class_name=raw_file.class_name,
        kind=raw_file.kind,
        size_bytes=size_bytes,
        md5=md5,
        content="",
        phash="",
        format="",
        mode="",
        width=0,
        height=0,
        orientation=0,
        camera="",
        sharpness=0.0,
        brightness=0.0,
        problem=problem,
        detail=detail,
    )
