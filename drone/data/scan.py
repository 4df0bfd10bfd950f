"""What is in a heap of collected files: one pure function for each file."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from drone.data.hashing import perceptual_hash
from drone.data.roots import Opener, Root, below, open_root
from drone.errors import DataError, ImageError
from drone.labels import CLASSES, match_class
from drone.serving.preprocess import DAMAGE, Preprocessing, load_roughly, open_header

UNREADABLE = "unreadable"
"""The problem of a file that the system does not let us read."""

_LOOK_PX = 128
"""Side of the square of grey on which sharpness and brightness are measured."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of a raw folder."""

    root: str
    """The folder, archive or URI with the class folders in it."""

    path: str
    """Path below the root, with forward slashes; its first part is the class folder."""

    class_name: str
    """Class that the folder's name means."""

    size_bytes: int = 0
    """As the place lists it."""

    changed: str = ""
    """See `roots.Entry`."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one look at a file found out."""

    root: str
    path: str
    class_name: str
    size_bytes: int
    md5: str
    """Of the file's bytes, hexadecimal; empty if it cannot be read or has too many of them."""

    phash: str
    """Perceptual hash of the decoded picture, hexadecimal; empty if there is none."""

    format: str
    """As Pillow names what the content is ("JPEG"); empty if there is no picture."""

    mode: str
    """Pixel mode in the file ("RGB", "CMYK", "I;16", ...)."""

    width: int
    height: int
    """Pixels, upright (after EXIF rotation); 0 if there is no picture."""

    orientation: int
    """EXIF orientation, 1 to 8; 0 if the file has none."""

    camera: str
    """EXIF make and model; empty if the file has none."""

    sharpness: float
    """Variance of the Laplacian of the grey picture at 128 x 128, values 0 to 255 (Pech-Pacheco
    et al. 2000): blurred pictures are low. 0 if there is no picture."""

    brightness: float
    """Mean of the grey picture, 0 black to 1 white. 0 if there is no picture."""

    problem: str
    """Empty for a good picture, else one of `ImageError.PROBLEMS` or "unreadable"."""

    detail: str
    """The problem in words."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of some raw folders, and the folders that mean no class."""

    sources: tuple[Source, ...]
    unknown_folders: tuple[str, ...]


def list_sources(
    roots: Sequence[str | Path],
    classes: Sequence[str] = CLASSES,
    *,
    all_classes: bool = True,
    opener: Opener = open_root,
) -> Listing:
    """Every file in the class folders of the roots, sorted by path, then root.

    The class folders may lie in one folder more, as archives often have them.

    Args:
        roots: folders, archives or URIs with one folder a class.
        classes: to look for.
        all_classes: whether each of them must have a file.
        opener: opens a root by its name.

    Raises:
        DataError: a root cannot be opened, no folder means a class, or a class has no file.
    """
    names = [str(root) for root in roots]
    if len(set(names)) < len(names):
        raise DataError(f"A raw folder is named twice: {', '.join(names)}. Name each once.")
    sources: list[Source] = []
    unknown: list[str] = []
    for name in names:
        inner, folders = _class_folders(name, opener(name), classes, opener)
        for folder in folders:
            class_name = match_class(folder, classes)
            if class_name is None:
                unknown.append(f"{inner}/{folder}")
                continue
            sources.extend(
                Source(
                    root=inner,
                    path=entry.path,
                    class_name=class_name,
                    size_bytes=entry.size_bytes,
                    changed=entry.changed,
                )
                for entry in opener(inner).entries(folder)
            )
    _check_classes(sources, unknown, names, classes, all_classes=all_classes)
    sources.sort(key=lambda source: (source.path, source.root))
    return Listing(sources=tuple(sources), unknown_folders=tuple(unknown))


def _class_folders(
    name: str, root: Root, classes: Sequence[str], opener: Opener
) -> tuple[str, list[str]]:
    """The name of the root that holds the class folders, and all folders in it."""
    folders = root.folders()
    known = any(match_class(folder, classes) for folder in folders)
    if known or len(folders) != 1:
        return name, folders
    inner = below(name, folders[0])
    deeper = opener(inner).folders()
    found = any(match_class(folder, classes) for folder in deeper)
    return (inner, deeper) if found else (name, folders)


def _check_classes(
    sources: Sequence[Source],
    unknown: Sequence[str],
    roots: Sequence[str],
    classes: Sequence[str],
    *,
    all_classes: bool,
) -> None:
    found = {source.class_name for source in sources}
    where = ", ".join(roots)
    if not found:
        has = ", ".join(Path(folder).name for folder in unknown) or "none"
        raise DataError(
            f"No folder in {where} holds a class. Folders there: {has}. "
            f"Wanted: {', '.join(classes)}."
        )
    missing = [name for name in classes if name not in found]
    if missing and all_classes:
        raise DataError(
            f"{where} holds no file of {_list(missing)}: the folder is missing or empty. "
            f"Add pictures, or name the classes that you have with --classes."
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def scan_file(source: Source, settings: Preprocessing, opener: Opener = open_root) -> Record:
    """Reads and decodes one file. A bad file becomes a record with its problem, never an error."""
    try:
        data = opener(source.root).read(source.path, settings.max_bytes)
    except OSError as error:
        return _problem(source, 0, "", UNREADABLE, f"Cannot be read: {error.strerror or error}.")
    if len(data) > settings.max_bytes:
        size = max(source.size_bytes, len(data))
        detail = f"The file has {size / 2**20:.0f} MiB; at most {settings.max_bytes / 2**20:g}."
        return _problem(source, size, "", "too-large", detail)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    try:
        return _look(source, data, md5, settings)
    except ImageError as error:
        return _problem(source, len(data), md5, error.problem, str(error))


def _look(source: Source, data: bytes, md5: str, settings: Preprocessing) -> Record:
    header = open_header(data, settings)
    orientation, camera = _exif(header)
    width, height = header.size
    if orientation >= 5:  # Lies on its side.
        width, height = height, width
    kind, mode = header.format or "", header.mode
    grey = load_roughly(header, _LOOK_PX, "L")
    seen = grey.resize((_LOOK_PX, _LOOK_PX), Image.Resampling.BOX)
    values = np.asarray(seen, dtype=np.float32)
    return Record(
        root=source.root,
        path=source.path,
        class_name=source.class_name,
        size_bytes=len(data),
        md5=md5,
        phash=perceptual_hash(grey).hex(),
        format=kind,
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


def _sharpness(grey_HW: np.ndarray) -> float:
    around = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:]
    return float((around - 4 * grey_HW[1:-1, 1:-1]).var())


def _exif(header: Image.Image) -> tuple[int, str]:
    """Orientation and camera; damaged EXIF counts as none."""
    orientation, camera = 0, ""
    with contextlib.suppress(*DAMAGE):
        exif = header.getexif()
        said = exif.get(ExifTags.Base.Orientation, 0)
        orientation = said if said in range(1, 9) else 0
        parts = (exif.get(tag, "") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
        words = " ".join(str(part).strip(" \0") for part in parts)
        camera = "".join(letter for letter in words if letter.isprintable()).strip()[:80]
    return orientation, camera


def _problem(source: Source, size_bytes: int, md5: str, problem: str, detail: str) -> Record:
    return Record(
        root=source.root,
        path=source.path,
        class_name=source.class_name,
        size_bytes=size_bytes,
        md5=md5,
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
