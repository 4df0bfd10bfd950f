"""A made-up raw folder: drawn pictures of the four classes with known dirt among them.

It has the same kinds of dirt as pictures collected from the web, in amounts that are known, so
that a test can demand exact counts and a demonstration needs no download.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from drone.data.bins import BIN_SIDES_PX
from drone.data.clean import ACROSS, WITHIN, Policy
from drone.data.drawing import Rng, draw
from drone.errors import ConfigError
from drone.labels import CLASSES

_BIN_SHARES = (0.36, 0.36, 0.14, 0.08, 0.03, 0.02, 0.01)


@dataclass(frozen=True, kw_only=True)
class SynthSettings:
    """How many pictures of which kind; counts of dirt are for the whole set."""

    images_per_class: int = 60
    """Clean drawings in each class, sides around 224 to 3584 px."""

    seed: int = 0
    """The same seed and settings give the same bytes."""

    non_media: int = 8
    """Text, notebooks, SVG, and HTML named .jpg."""

    empty: int = 2
    """Files of zero bytes."""

    broken: int = 6
    """JPEG, PNG and WebP cut short, and PNG with a damaged header."""

    one_pixel: int = 2
    """PNG of one pixel."""

    very_large: int = 1
    """PNG of 9,000 x 9,000 pixels in a few kilobytes."""

    exact_within: int = 12
    """Byte-for-byte copies under another name in the same class."""

    exact_across: int = 6
    """Byte-for-byte copies in another class's folder."""

    near: int = 8
    """Copies with another size, brightness or compression, every second in another class."""

    swapped: int = 8
    """Drawings of small quadcopters among the large ones and the other way round."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "seed" and value < 0:
                raise ConfigError(f"{name} is {value}; it must be 0 or more.")
        if self.images_per_class < 4:
            raise ConfigError(f"images_per_class is {self.images_per_class}; at least 4.")
        pictures = self.images_per_class * len(CLASSES)
        if self.exact_within + self.exact_across + self.near > pictures:
            raise ConfigError(
                f"exact_within, exact_across and near copy a picture each; "
                f"together they must be at most {pictures}."
            )


@dataclass
class Truth:
    """What `make` put into the folder; paths are "Class/name"."""

    broken: dict[str, str] = field(default_factory=dict)
    """Path of each file that holds no usable picture, and the reason to expect."""

    copies: list[list[str]] = field(default_factory=list)
    """Sets of byte-for-byte equal pictures, each sorted."""

    near: list[list[str]] = field(default_factory=list)
    """Sets of near duplicates that are not byte-for-byte equal."""

    swapped: dict[str, str] = field(default_factory=dict)
    """Path of each picture in a wrong folder, and the class that it shows."""

    odd: dict[str, str] = field(default_factory=dict)
    """Path of each good picture of an unusual kind, and what is unusual."""

    files: list[str] = field(default_factory=list)
    """Every file, sorted."""

    def reasons(self, policy: Policy) -> dict[str, str]:
        """The reason to expect for each file that a policy leaves out."""
        expected = dict(self.broken)
        for paths in self.copies:
            by_class: dict[str, list[str]] = {}
            for path in paths:
                by_class.setdefault(path.split("/")[0], []).append(path)
            kept = _kept_class(by_class, policy)
            for class_name, own in by_class.items():
                expected.update(dict.fromkeys(own[1:], WITHIN))
                if class_name != kept and len(by_class) > 1:
                    expected[own[0]] = ACROSS
        return expected


def _kept_class(by_class: Mapping[str, list[str]], policy: Policy) -> str | None:
    if policy == "first":
        return min(by_class, key=lambda name: by_class[name][0])
    counts = sorted((len(paths) for paths in by_class.values()), reverse=True)
    if policy == "majority" and (len(counts) == 1 or counts[0] > counts[1]):
        return max(by_class, key=lambda name: len(by_class[name]))
    return None


def make(folder: Path, settings: SynthSettings) -> Truth:
    """Draws the set into a folder and says what is in it.

    Args:
        folder: made if it is not there; a file of the same name in it is overwritten.
        settings: how much of what.
    """
    truth = Truth()
    for number, class_name in enumerate(CLASSES):
        (folder / class_name).mkdir(parents=True, exist_ok=True)
        for image in range(settings.images_per_class):
            rng = np.random.default_rng([settings.seed, number, image])
            _write_clean(folder, class_name, image, rng, truth)
    clean = sorted(truth.files)
    rng = np.random.default_rng([settings.seed, 1_000_000])
    drawn = [clean[index] for index in rng.permutation(len(clean))]
    # Pictures of unusual kinds stay single: a copy of one would be of its kind too.
    plain = [path for path in drawn if path not in truth.odd]
    _add_copies(folder, plain, settings, rng, truth)
    _add_swapped(folder, settings, truth)
    _add_broken(folder, settings, rng, truth)
    truth.files.sort()
    return truth


def write_truth(truth: Truth, file: Path) -> None:
    """The truth as JSON, to compare with by hand."""
    file.write_text(json.dumps(asdict(truth), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _size(rng: Rng) -> tuple[int, int]:
    side = int(rng.choice(BIN_SIDES_PX, p=_BIN_SHARES))
    other = round(side * rng.uniform(0.6, 1.0))
    return (side, other) if rng.random() < 0.7 else (other, side)


def _write_clean(folder: Path, class_name: str, image: int, rng: Rng, truth: Truth) -> None:
    width, height = _size(rng)
    if image < len(BIN_SIDES_PX):  # The first pictures of a class fill every bin once.
        width, height = BIN_SIDES_PX[image], round(BIN_SIDES_PX[image] * 0.75)
    picture = draw(class_name, width, height, rng)
    # The next ones are one of each kind, and so again in every 40.
    kind = _kind(image - len(BIN_SIDES_PX))
    stem = f"{class_name.split()[0].lower()}_{image:04d}"
    if kind:
        suffix, save = _KINDS[kind]
        name = _odd_name(stem, kind) + suffix
        data = save(picture)
        truth.odd[f"{class_name}/{name}"] = kind
    else:
        name, data = f"{stem}.jpg", _jpeg(picture)
    _write(folder, f"{class_name}/{name}", data, truth)


def _kind(number: int) -> str:
    position = number % 40 if number >= 0 else len(_KINDS)
    return list(_KINDS)[position] if position < len(_KINDS) else ""


def _write(folder: Path, path: str, data: bytes, truth: Truth) -> None:
    (folder / path).write_bytes(data)
    truth.files.append(path)


def _odd_name(stem: str, kind: str) -> str:
    if kind == "comma":
        return f"{stem}, seen from below, evening"
    if kind == "non-ascii":
        return f"{stem} žluťoučký кот 鳥"
    if kind == "long name":
        return (stem + "-" + "a-very-long-name-" * 12)[:188]
    return stem


def _encode(picture: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()


def _jpeg(picture: Image.Image) -> bytes:
    return _encode(picture, "JPEG", quality=88)


def _rotated_jpeg(picture: Image.Image) -> bytes:
    """Stored on its side, with the EXIF note that sets it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = picture.transpose(Image.Transpose.ROTATE_90)
    return _encode(stored, "JPEG", quality=88, exif=exif)


def _with_alpha(picture: Image.Image) -> bytes:
    fade = Image.linear_gradient("L").resize(picture.size).point(lambda value: 255 - value // 4)
    clear = picture.copy()
    clear.putalpha(fade)
    return _encode(clear, "PNG")


def _grey_16_bit(picture: Image.Image) -> bytes:
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    return _encode(Image.fromarray(grey), "PNG")


_KINDS: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "gif": (".gif", lambda picture: _encode(picture, "GIF")),
    "jfif": (".jfif", _jpeg),
    "webp": (".webp", lambda picture: _encode(picture, "WEBP", quality=85)),
    "ppm": (".ppm", lambda picture: _encode(picture.reduce(2), "PPM")),
    "bmp": (".bmp", lambda picture: _encode(picture.reduce(2), "BMP")),
    "PNG named jpg": (".jpg", lambda picture: _encode(picture, "PNG")),
    "JPEG named png": (".png", _jpeg),
    "EXIF rotation": (".jpg", _rotated_jpeg),
    "CMYK": (".jpg", lambda picture: _encode(picture.convert("CMYK"), "JPEG", quality=88)),
    "alpha": (".png", _with_alpha),
    "16 bit": (".png", _grey_16_bit),
    "grey": (".jpg", lambda picture: _encode(picture.convert("L"), "JPEG", quality=88)),
    "palette": (".png", lambda picture: _encode(picture.quantize(64), "PNG")),
    "comma": (".jpg", _jpeg),
    "non-ascii": (".jpg", _jpeg),
    "long name": (".jpg", _jpeg),
    "upper case": (".JPG", _jpeg),
}


def _add_copies(
    folder: Path, pool: list[str], settings: SynthSettings, rng: Rng, truth: Truth
) -> None:
    originals = iter(pool)
    for number in range(settings.exact_within):
        original = next(originals)
        class_name = original.split("/")[0]
        copy = f"{class_name}/copy_{number:03d}.jpg"
        _write(folder, copy, (folder / original).read_bytes(), truth)
        truth.copies.append(sorted([original, copy]))
    for number in range(settings.exact_across):
        original = next(originals)
        copy = f"{_other_class(original, rng)}/shared_{number:03d}.jpg"
        data = (folder / original).read_bytes()
        _write(folder, copy, data, truth)
        paths = [original, copy]
        if number % 3 == 2:  # Two in one class and one in another: a majority.
            paths.append(f"{original.split('/')[0]}/shared_again_{number:03d}.jpg")
            _write(folder, paths[-1], data, truth)
        truth.copies.append(sorted(paths))
    for number in range(settings.near):
        original = next(originals)
        class_name = original.split("/")[0] if number % 2 else _other_class(original, rng)
        copy = f"{class_name}/near_{number:03d}.jpg"
        _write(folder, copy, _near_copy(folder / original, number), truth)
        truth.near.append(sorted([original, copy]))


def _other_class(path: str, rng: Rng) -> str:
    others = [name for name in CLASSES if name != path.split("/")[0]]
    return others[int(rng.integers(len(others)))]


def _near_copy(file: Path, number: int) -> bytes:
    with Image.open(file) as picture:
        picture.load()
    if number % 3 == 0:
        return _encode(picture.resize((picture.width // 2, picture.height // 2)), "JPEG")
    if number % 3 == 1:
        return _encode(ImageEnhance.Brightness(picture).enhance(1.12), "JPEG", quality=80)
    return _encode(picture, "JPEG", quality=40)


def _add_swapped(folder: Path, settings: SynthSettings, truth: Truth) -> None:
    large, small = CLASSES[1], CLASSES[2]
    for number in range(settings.swapped):
        shown, lies_in = (small, large) if number % 2 else (large, small)
        rng = np.random.default_rng([settings.seed, 2_000_000, number])
        path = f"{lies_in}/swapped_{number:03d}.jpg"
        _write(folder, path, _jpeg(draw(shown, *_size(rng), rng)), truth)
        truth.swapped[path] = shown


def _add_broken(folder: Path, settings: SynthSettings, rng: Rng, truth: Truth) -> None:
    def add(name: str, data: bytes, reason: str) -> None:
        path = f"{CLASSES[len(truth.broken) % len(CLASSES)]}/{name}"
        _write(folder, path, data, truth)
        truth.broken[path] = reason

    for number in range(settings.non_media):
        suffix, text = _NON_MEDIA[number % len(_NON_MEDIA)]
        add(f"page_{number:03d}{suffix}", f"{text}\n<!-- {number} -->\n".encode(), "non-media")
    for number in range(settings.empty):
        add(f"empty_{number:03d}.jpg", b"", "empty")
    for number in range(settings.broken):
        picture = draw(CLASSES[number % len(CLASSES)], 320, 240, rng)
        suffix, damage = _DAMAGES[number % len(_DAMAGES)]
        add(f"broken_{number:03d}{suffix}", damage(picture), "undecodable")
    for number in range(settings.one_pixel):
        add(
            f"pixel_{number:03d}.png",
            _encode(Image.new("RGB", (1, 1 + number)), "PNG"),
            "too-small",
        )
    for number in range(settings.very_large):
        huge = Image.new("1", (9000, 9000 + number))
        add(f"huge_{number:03d}.png", _encode(huge, "PNG"), "too-large")


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _bad_header(picture: Image.Image) -> bytes:
    data = bytearray(_encode(picture, "PNG"))
    data[30] ^= 0xFF  # In the checksum of the first chunk.
    return bytes(data)


_DAMAGES: tuple[tuple[str, Callable[[Image.Image], bytes]], ...] = (
    (".jpg", lambda picture: _cut(_jpeg(picture))),
    (".png", lambda picture: _cut(_encode(picture, "PNG"))),
    (".webp", lambda picture: _cut(_encode(picture, "WEBP"))),
    (".png", _bad_header),
)

_NON_MEDIA = (
    (".txt", "a list of addresses"),
    (".ipynb", '{"cells": [], "nbformat": 4}'),
    (".svg", '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'),
    (".jpg", "<!DOCTYPE html><html><body>404 Not Found</body></html>"),
)
