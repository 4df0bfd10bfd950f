"""Writes a synthetic raw folder: drawings of the four classes, with known defects among them.

The defects are of the kinds that images collected from the web have, in known numbers: tests can
demand exact counts, and the demonstration needs no download.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from drone.data.bins import BIN_SIDES_PX
from drone.data.prepare.verdicts import ACROSS, WITHIN, Policy
from drone.errors import ConfigError
from drone.labels import CLASSES
from drone.synth.drawing import Rng, draw
from drone.synth.encoding import DAMAGES, NO_IMAGES, UNUSUAL_KINDS, encode, file_name, jpeg

_BIN_SHARES = (0.36, 0.36, 0.14, 0.08, 0.03, 0.02, 0.01)
"""Share of the drawings in each bin: collected images are mostly small, and a few are huge."""

_UNUSUAL_PERIOD = 40
"""Every so many drawings of a class, there is one file of each unusual kind."""

_MISLABELLED_STREAM, _DEFECT_STREAM = 2_000_000, 1_000_000
"""Streams of random numbers beside those of the classes, which are numbered from 0."""


@dataclass(frozen=True, kw_only=True)
class SynthSettings:
    """How many files of each kind to write; numbers of defects are for the whole folder."""

    images_per_class: int = 60
    """Number of clean drawings in each class."""

    max_side_px: int = BIN_SIDES_PX[-1]
    """Maximum longer side of the drawings in pixels, at least 224."""

    seed: int = 0
    """Seed of the drawings; the same seed and settings give the same bytes."""

    non_media: int = 8
    """Number of text files, notebooks, SVG, and HTML named .jpg."""

    empty: int = 2
    """Number of files of zero bytes."""

    broken: int = 6
    """Number of truncated JPEG, PNG and WebP, and PNG with a damaged header."""

    one_pixel: int = 2
    """Number of PNG of about one pixel."""

    very_large: int = 1
    """Number of PNG of 9,000 x 9,000 pixels in a few kilobytes."""

    exact_within: int = 12
    """Number of exact duplicates under another name in the same class."""

    exact_across: int = 6
    """Number of exact duplicates in the folder of another class."""

    near: int = 8
    """Number of near duplicates: another size, brightness or compression, every second one in the
    folder of another class."""

    mislabelled: int = 8
    """Number of small quadcopters in the folder of the large ones and the other way round."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "seed" and value < 0:
                raise ConfigError(f"{name} is {value}; it must be 0 or more.")
        if self.images_per_class < 4:
            raise ConfigError(
                f"images_per_class is {self.images_per_class}; it must be at least 4."
            )
        if self.max_side_px < BIN_SIDES_PX[0]:
            raise ConfigError(
                f"max_side_px is {self.max_side_px}; it must be at least {BIN_SIDES_PX[0]}."
            )
        num_plain = len(CLASSES) * sum(
            not _unusual_kind(index, self.sides_px) for index in range(self.images_per_class)
        )
        if self.exact_within + self.exact_across + self.near > num_plain:
            raise ConfigError(
                f"exact_within, exact_across and near duplicate one image each; their sum must be "
                f"at most {num_plain}, the number of images of no unusual kind."
            )

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Sides of the drawings, ascending."""
        return tuple(side for side in BIN_SIDES_PX if side <= self.max_side_px)


@dataclass
class GroundTruth:
    """What a synthetic raw folder holds; paths are "Class/name"."""

    broken: dict[str, str] = field(default_factory=dict)
    """Path of each file that holds no usable image, and the reason to expect."""

    exact_duplicates: list[list[str]] = field(default_factory=list)
    """Sets of byte-for-byte equal images, each sorted."""

    near_duplicates: list[list[str]] = field(default_factory=list)
    """Sets of near duplicates that are not byte-for-byte equal."""

    mislabelled: dict[str, str] = field(default_factory=dict)
    """Path of each image in a wrong folder, and the class that it shows."""

    unusual: dict[str, str] = field(default_factory=dict)
    """Path of each valid image of an unusual kind, and its kind."""

    files: list[str] = field(default_factory=list)
    """Every file, sorted."""

    def expected_reasons(self, policy: Policy) -> dict[str, str]:
        """Returns the reason to expect for each file that a policy leaves out."""
        expected = dict(self.broken)
        for paths in self.exact_duplicates:
            by_class: dict[str, list[str]] = {}
            for path in paths:
                by_class.setdefault(path.split("/")[0], []).append(path)
            kept = _kept_class(by_class, policy)
            for class_name, in_class in by_class.items():
                expected.update(dict.fromkeys(in_class[1:], WITHIN))
                if class_name != kept and len(by_class) > 1:
                    expected[in_class[0]] = ACROSS
        return expected


def _kept_class(by_class: Mapping[str, list[str]], policy: Policy) -> str | None:
    if policy == "first":
        return min(by_class, key=lambda name: by_class[name][0])
    counts = sorted((len(paths) for paths in by_class.values()), reverse=True)
    if policy == "majority" and (len(counts) == 1 or counts[0] > counts[1]):
        return max(by_class, key=lambda name: len(by_class[name]))
    return None


def write_raw_folder(folder: Path, settings: SynthSettings) -> GroundTruth:
    """Draws the images into a folder and returns what is in it.

    Args:
        folder: Created if it does not exist; files of the same names are overwritten.
        settings: How many files of each kind.
    """
    truth = GroundTruth()
    for number, class_name in enumerate(CLASSES):
        (folder / class_name).mkdir(parents=True, exist_ok=True)
        for index in range(settings.images_per_class):
            # A stream per image: more images per class leave the earlier ones as they are.
            rng = np.random.default_rng([settings.seed, number, index])
            _write_clean(folder, class_name, index, settings, rng, truth)
    clean = sorted(truth.files)
    rng = np.random.default_rng([settings.seed, _DEFECT_STREAM])
    shuffled = [clean[index] for index in rng.permutation(len(clean))]
    # Images of unusual kinds are not duplicated: the duplicate would be of that kind too.
    plain = [path for path in shuffled if path not in truth.unusual]
    _add_duplicates(folder, plain, settings, rng, truth)
    _add_mislabelled(folder, settings, truth)
    _add_broken(folder, settings, rng, truth)
    truth.files.sort()
    return truth


def write_ground_truth(truth: GroundTruth, file: Path) -> None:
    """Writes the ground truth as JSON."""
    file.write_text(json.dumps(asdict(truth), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _size(sides_px: tuple[int, ...], rng: Rng) -> tuple[int, int]:
    """Returns a width and height."""
    shares = np.array(_BIN_SHARES[: len(sides_px)])
    side = int(rng.choice(sides_px, p=shares / shares.sum()))
    other = round(side * rng.uniform(0.6, 1.0))
    return (side, other) if rng.random() < 0.7 else (other, side)


def _write_clean(
    folder: Path,
    class_name: str,
    index: int,
    settings: SynthSettings,
    rng: Rng,
    truth: GroundTruth,
) -> None:
    sides_px = settings.sides_px
    width, height = _size(sides_px, rng)
    if index < len(sides_px):  # The first images of a class fill every bin once.
        width, height = sides_px[index], round(sides_px[index] * 0.75)
    image = draw(class_name, width, height, rng)
    kind = _unusual_kind(index, sides_px)
    stem = f"{class_name.split()[0].lower()}_{index:04d}"
    if kind:
        name, data = file_name(stem, kind), UNUSUAL_KINDS[kind][1](image)
        truth.unusual[f"{class_name}/{name}"] = kind
    else:
        name, data = f"{stem}.jpg", jpeg(image)
    _write(folder, f"{class_name}/{name}", data, truth)


def _unusual_kind(index: int, sides_px: tuple[int, ...]) -> str:
    """Returns the kind of the file of a class's image, "" for a plain JPEG."""
    number = index - len(sides_px)
    position = number % _UNUSUAL_PERIOD if number >= 0 else len(UNUSUAL_KINDS)
    return list(UNUSUAL_KINDS)[position] if position < len(UNUSUAL_KINDS) else ""


def _write(folder: Path, path: str, data: bytes, truth: GroundTruth) -> None:
    (folder / path).write_bytes(data)
    truth.files.append(path)


def _add_duplicates(
    folder: Path, pool: list[str], settings: SynthSettings, rng: Rng, truth: GroundTruth
) -> None:
    originals = iter(pool)
    for number in range(settings.exact_within):
        original = next(originals)
        class_name = original.split("/")[0]
        copy = f"{class_name}/copy_{number:03d}.jpg"
        _write(folder, copy, (folder / original).read_bytes(), truth)
        truth.exact_duplicates.append(sorted([original, copy]))
    for number in range(settings.exact_across):
        original = next(originals)
        copy = f"{_other_class(original, rng)}/shared_{number:03d}.jpg"
        data = (folder / original).read_bytes()
        _write(folder, copy, data, truth)
        paths = [original, copy]
        if number % 3 == 2:  # Two in one class and one in another: a majority.
            paths.append(f"{original.split('/')[0]}/shared_again_{number:03d}.jpg")
            _write(folder, paths[-1], data, truth)
        truth.exact_duplicates.append(sorted(paths))
    for number in range(settings.near):
        original = next(originals)
        class_name = original.split("/")[0] if number % 2 else _other_class(original, rng)
        copy = f"{class_name}/near_{number:03d}.jpg"
        _write(folder, copy, _near_duplicate(folder / original, number), truth)
        truth.near_duplicates.append(sorted([original, copy]))


def _other_class(path: str, rng: Rng) -> str:
    others = [name for name in CLASSES if name != path.split("/")[0]]
    return others[int(rng.integers(len(others)))]


def _near_duplicate(file: Path, number: int) -> bytes:
    with Image.open(file) as image:
        image.load()
    if number % 3 == 0:
        return encode(image.resize((image.width // 2, image.height // 2)), "JPEG")
    if number % 3 == 1:
        return encode(ImageEnhance.Brightness(image).enhance(1.12), "JPEG", quality=80)
    return encode(image, "JPEG", quality=40)


def _add_mislabelled(folder: Path, settings: SynthSettings, truth: GroundTruth) -> None:
    large, small = CLASSES[1], CLASSES[2]
    for number in range(settings.mislabelled):
        shown, folder_name = (small, large) if number % 2 else (large, small)
        rng = np.random.default_rng([settings.seed, _MISLABELLED_STREAM, number])
        path = f"{folder_name}/mislabelled_{number:03d}.jpg"
        _write(folder, path, jpeg(draw(shown, *_size(settings.sides_px, rng), rng)), truth)
        truth.mislabelled[path] = shown


def _add_broken(folder: Path, settings: SynthSettings, rng: Rng, truth: GroundTruth) -> None:
    def add(name: str, data: bytes, reason: str) -> None:
        path = f"{CLASSES[len(truth.broken) % len(CLASSES)]}/{name}"
        _write(folder, path, data, truth)
        truth.broken[path] = reason

    for number in range(settings.non_media):
        suffix, text, reason = NO_IMAGES[number % len(NO_IMAGES)]
        add(f"page_{number:03d}{suffix}", f"{text}\n<!-- {number} -->\n".encode(), reason)
    for number in range(settings.empty):
        add(f"empty_{number:03d}.jpg", b"", "empty")
    for number in range(settings.broken):
        image = draw(CLASSES[number % len(CLASSES)], 320, 240, rng)
        suffix, damage = DAMAGES[number % len(DAMAGES)]
        add(f"broken_{number:03d}{suffix}", damage(image), "undecodable")
    for number in range(settings.one_pixel):
        pixel = Image.new("RGB", (1, 1 + number))
        add(f"pixel_{number:03d}.png", encode(pixel, "PNG"), "too-small")
    for number in range(settings.very_large):
        huge = Image.new("1", (9000, 9000 + number))
        add(f"huge_{number:03d}.png", encode(huge, "PNG"), "too-large")
