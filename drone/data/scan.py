"""What is in a heap of collected files: one pure function for each file."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drone.data.hashing import perceptual_hash
from drone.errors import DataError, ImageError
from drone.labels import CLASSES, match_class
from drone.serving.preprocess import Preprocessing, decode, open_header

UNREADABLE = "unreadable"
"""The problem of a file that the system does not let us read."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of a raw folder."""

    root: str
    """The raw folder as it was given."""

    path: str
    """Path below the root, with forward slashes; its first part is the class folder."""

    class_name: str
    """Class that the folder's name means."""

    @property
    def file(self) -> Path:
        """Where the file lies."""
        return Path(self.root) / self.path


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one look at a file found out."""

    root: str
    path: str
    class_name: str
    size_bytes: int
    md5: str
    """Of the file's bytes, hexadecimal; empty if the file cannot be read."""

    phash: str
    """Perceptual hash of the decoded picture, hexadecimal; empty if there is none."""

    format: str
    """As Pillow names what the content is ("JPEG"); empty if there is no picture."""

    mode: str
    """Pixel mode in the file ("RGB", "CMYK", "I;16", ...)."""

    width: int
    height: int
    """Pixels, upright (after EXIF rotation); 0 if there is no picture."""

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
    roots: Sequence[Path], classes: Sequence[str] = CLASSES, *, all_classes: bool = True
) -> Listing:
    """Every file in the class folders of the roots, sorted by path, then root.

    Links to folders are not followed, so that a loop of links cannot trap the walk.

    Args:
        roots: folders with one subfolder a class.
        classes: to look for.
        all_classes: whether each of them must have a file.

    Raises:
        DataError: a root is no folder, no folder means a class, or a class has no file.
    """
    sources: list[Source] = []
    unknown: list[str] = []
    for root in roots:
        if not root.is_dir():
            raise DataError(
                f"There is no folder {root}. Wanted is a folder with one subfolder a class: "
                f"{', '.join(classes)}."
            )
        for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
            name = match_class(folder.name, classes)
            if name is None:
                unknown.append(str(folder))
                continue
            sources.extend(
                Source(root=str(root), path=file.relative_to(root).as_posix(), class_name=name)
                for file in _files_below(folder)
            )
    _check_classes(sources, unknown, roots, classes, all_classes=all_classes)
    sources.sort(key=lambda source: (source.path, source.root))
    return Listing(sources=tuple(sources), unknown_folders=tuple(unknown))


def _files_below(folder: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(folder):
        for name in names:
            yield Path(directory) / name


def _check_classes(
    sources: Sequence[Source],
    unknown: Sequence[str],
    roots: Sequence[Path],
    classes: Sequence[str],
    *,
    all_classes: bool,
) -> None:
    found = {source.class_name for source in sources}
    where = ", ".join(map(str, roots))
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


def scan_file(source: Source, settings: Preprocessing) -> Record:
    """Reads and decodes one file. A bad file becomes a record with its problem, never an error."""
    try:
        size = source.file.stat().st_size
        data = source.file.read_bytes() if size <= settings.max_bytes else b""
    except OSError as error:
        return _problem(source, 0, "", UNREADABLE, f"Cannot be read: {error.strerror}.")
    if size > settings.max_bytes:
        detail = f"The file has {size / 2**20:.0f} MiB; at most {settings.max_bytes / 2**20:g}."
        return _problem(source, size, _md5_of_large(source.file), "too-large", detail)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    try:
        header = open_header(data, settings)
        image = decode(data, settings)
    except ImageError as error:
        return _problem(source, size, md5, error.problem, str(error))
    return Record(
        root=source.root,
        path=source.path,
        class_name=source.class_name,
        size_bytes=size,
        md5=md5,
        phash=perceptual_hash(image).hex(),
        format=header.format or "",
        mode=header.mode,
        width=image.width,
        height=image.height,
        problem="",
        detail="",
    )


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
        problem=problem,
        detail=detail,
    )


def _md5_of_large(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
