"""What is in raw folders: lists the files, then describes each by one pure function."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from drone.commands import quoted
from drone.data.prepare.perceptual_hash import perceptual_hash
from drone.data.prepare.roots import Opener, Root, escaped_name, join_root, open_root
from drone.errors import DataError, ImageError
from drone.labels import CLASSES, match_class
from drone.serving.preprocess import DECODE_ERRORS, Preprocessing, decode_reduced, open_header

UNREADABLE = "unreadable"
"""Problem of a file that the operating system or the archive does not let us read."""

_MAX_SHOWN = 10
"""Maximum number of folders that an error names."""

_MEASURE_PX = 128
"""Side of the grey square on which sharpness and brightness are measured."""


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """One file of a raw folder, as listed."""

    root: str
    """Folder, archive or URI that holds the class folders."""

    path: str
    """Path below the root, with forward slashes; its first part is the class folder."""

    class_name: str
    """Class that matches the folder's name."""

    size_bytes: int = 0
    """Size as the root lists it."""

    change_token: str = ""
    """See `roots.Entry`."""


@dataclass(frozen=True, kw_only=True)
class ScanRecord:
    """What the scan of one file gave."""

    root: str
    path: str
    class_name: str
    size_bytes: int
    md5: str
    """md5 of the file's bytes, hexadecimal; empty if the file is unreadable or too large."""

    phash: str
    """Perceptual hash of the decoded image, hexadecimal; empty if there is none."""

    format: str
    """Pillow's name of the content's format ("JPEG"); empty if there is no image."""

    mode: str
    """Pixel mode in the file ("RGB", "CMYK", "I;16", ...)."""

    width: int
    height: int
    """Size in pixels after EXIF rotation; 0 if there is no image."""

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
    """Empty for a good image, else one of `ImageError.REASONS` or "unreadable"."""

    detail: str
    """The problem in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of the raw folders, and the folders that match no class."""

    files: tuple[RawFile, ...]
    unknown_folders: tuple[str, ...]


def list_raw_files(
    roots: Sequence[str | Path],
    classes: Sequence[str] = CLASSES,
    *,
    require_all_classes: bool = True,
    opener: Opener = open_root,
) -> Listing:
    """Lists every file in the class folders of the roots, sorted by path, then root.

    The class folders may lie one folder deeper, as they often do in archives.

    Args:
        roots: Folders, archives or URIs with one folder per class.
        classes: Classes to look for.
        require_all_classes: Whether each of them must have a file.
        opener: Opens a root by its name.

    Raises:
        DataError: A root cannot be opened or is named twice, no folder matches a class, or a
            class has no file.
    """
    names = [escaped_name(str(root)) for root in roots]
    if len(set(names)) < len(names):
        raise DataError(f"A raw folder is named twice: {', '.join(names)}. Name each once.")
    files: list[RawFile] = []
    unknown: list[str] = []
    for name in names:
        inner, folders = _class_folders(name, opener(name), classes, opener)
        for folder in folders:
            class_name = match_class(folder, classes)
            if class_name is None:
                unknown.append(f"{inner}/{folder}")
                continue
            files.extend(
                RawFile(
                    root=inner,
                    path=entry.path,
                    class_name=class_name,
                    size_bytes=entry.size_bytes,
                    change_token=entry.change_token,
                )
                for entry in opener(inner).entries(folder)
            )
    _check_classes(files, unknown, names, classes, require_all=require_all_classes)
    # By path first: the same files give the same verdicts, wherever their roots are.
    files.sort(key=lambda file: (file.path, file.root))
    return Listing(files=tuple(files), unknown_folders=tuple(unknown))


def _class_folders(
    name: str, root: Root, classes: Sequence[str], opener: Opener
) -> tuple[str, list[str]]:
    """Returns the name of the root that holds the class folders, and all folders in it."""
    folders = root.folders()
    # A single folder that names no class may only wrap the class folders.
    if len(folders) != 1 or any(match_class(folder, classes) for folder in folders):
        return name, folders
    inner = join_root(name, folders[0])
    inner_folders = opener(inner).folders()
    is_wrapper = any(match_class(folder, classes) for folder in inner_folders)
    return (inner, inner_folders) if is_wrapper else (name, folders)


def _check_classes(
    files: Sequence[RawFile],
    unknown: Sequence[str],
    roots: Sequence[str],
    classes: Sequence[str],
    *,
    require_all: bool,
) -> None:
    present = {file.class_name for file in files}
    names = ", ".join(roots)
    if not present:
        inside = [name for name in roots if match_class(Path(name).name, classes)]
        if inside:
            raise DataError(
                f"{inside[0]} is the folder of a class itself. Name the folder above it, which has "
                f"one per class: {quoted(Path(inside[0]).parent)}"
            )
        if not unknown:
            raise DataError(
                f"{names} has no folders. Name a folder that has one per class: "
                f"{', '.join(classes)}."
            )
        folders = [Path(folder).name for folder in unknown]
        shown = ", ".join(folders[:_MAX_SHOWN]) or "none"
        if len(folders) > _MAX_SHOWN:
            shown += f" and {len(folders) - _MAX_SHOWN} more"
        hint = ", or name your own classes with --classes" if require_all else ""
        raise DataError(
            f"No folder in {names} matches a class. Folders there: {shown}. Rename them to the "
            f"classes ({', '.join(classes)}){hint}."
        )
    missing = [name for name in classes if name not in present]
    if missing and require_all:
        raise DataError(
            f"{names} holds no file of {', '.join(map(repr, missing))}: the folder is missing or "
            f"empty. Add images, or name all classes that you have, at least two: --classes "
            f"{' '.join(quoted(name) for name in classes if name in present)}"
        )


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
    width, height = header.size
    if orientation >= 5:  # EXIF orientations 5 to 8 are turned by 90 degrees.
        width, height = height, width
    # Reduced decoding changes the header's mode, so it is read before.
    image_format, mode = header.format or "", header.mode
    grey = decode_reduced(header, _MEASURE_PX, "L")
    square = grey.resize((_MEASURE_PX, _MEASURE_PX), Image.Resampling.BOX)
    values = np.asarray(square, dtype=np.float32)
    return ScanRecord(
        root=raw_file.root,
        path=raw_file.path,
        class_name=raw_file.class_name,
        size_bytes=len(data),
        md5=md5,
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
