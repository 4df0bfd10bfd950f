"""Which files are in raw folders, and which of them are in no class folder."""

import contextlib
import itertools
import mimetypes
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drone.commands import quoted
from drone.data.prepare.roots import Entry, Opener, Root, escaped_name, join_root, open_root
from drone.errors import DataError
from drone.labels import CLASSES, ClassSet, normalised
from drone.names import listed

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Splits by the usual names of their folders, normalised."""

_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
"""Folders of previews, deleted files and metadata that operating systems add."""

MAX_DEPTH = 2
"""Folders that the class folders may lie in, below the root: images/train/Flying Birds."""

_MAX_COUNTED = 100_000
"""Files of a folder that are counted at most, where none of them is read."""


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """One file of a raw folder, as listed."""

    root: str
    """Folder, archive or URI that holds the class folders."""

    path: str
    """Path below the root, with forward slashes; its first part is the folder of the class or of
    the kind."""

    class_name: str
    """Class that matches the folder's name; `labels.NONE` for negatives."""

    kind: str = ""
    """Kind of a negative; empty for files of classes."""

    size_bytes: int = 0
    """Size as the root lists it."""

    change_token: str = ""
    """See `roots.Entry`."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Files that are not scanned."""

    root: str
    folder: str
    """Path of their folder below the root; empty for images beside the class folders."""

    reason: Literal["no class", "hidden", "no class folder"]

    num_files: int

    def __str__(self) -> str:
        files = f"{self.num_files} file{'' if self.num_files == 1 else 's'}"
        if self.reason == "no class folder":
            return f"{self.root}: {files} outside of the class folders left out."
        cause = "is hidden" if self.reason == "hidden" else "matches no class"
        return f"{join_root(self.root, self.folder)} {cause}: {files} left out."


@dataclass
class Listing:
    """The files of the raw folders."""

    files: list[RawFile] = field(default_factory=list)
    """Those that are in class folders, sorted by path, then root."""

    left_out: list[LeftOut] = field(default_factory=list)
    """The others, by folder."""


def list_raw_files(
    roots: Sequence[str | Path],
    classes: ClassSet = CLASSES,
    *,
    require_all_classes: bool = True,
    opener: Opener = open_root,
) -> Listing:
    """Lists every file of the roots.

    The class folders may lie one folder deeper, as they often do in archives, or in folders named
    train, validation and test, each of which becomes a root. Hidden folders are left out.

    Args:
        roots: Folders, archives or URIs with one folder per class.
        classes: Classes to look for.
        require_all_classes: Whether each of them must have a file.
        opener: Opens a root by its name.

    Raises:
        DataError: A root cannot be opened or is named twice, no folder matches a class, or a
            class has no file.
    """
    names = root_names(roots)
    listing = Listing()
    for name in names:
        _list_root(listing, name, classes, opener)
    _check_classes(listing, names, classes, require_all=require_all_classes)
    # By path first: the same files give the same verdicts, wherever their roots are.
    listing.files.sort(key=lambda file: (file.path, file.root))
    return listing


def class_folders(
    roots: Sequence[str | Path], negatives: Sequence[str | Path], opener: Opener = open_root
) -> list[str]:
    """Returns the names of the folders that would be class folders, whatever they are called.

    Args:
        roots: Folders, archives or URIs with one folder per class; these may lie deeper, as
            `list_raw_files` has it.
        negatives: Folders that are none.
        opener: Opens a root by its name.

    Raises:
        DataError: A root cannot be opened or is named twice.
    """
    excluded = {location(str(name)) for name in negatives}
    return [
        folder for name in root_names(roots) for folder in _class_folders(name, excluded, opener)
    ]


def _class_folders(
    name: str, excluded: Collection[str], opener: Opener, depth: int = 0
) -> list[str]:
    folders = [
        folder
        for folder in opener(name).folders()
        if not is_hidden(folder) and location(join_root(name, folder)) not in excluded
    ]
    inner = _inner_roots(folders) if depth < MAX_DEPTH else []
    # A single folder without folders in it is a class: images of one may come by themselves.
    is_class = len(folders) == 1 and not opener(join_root(name, folders[0])).folders()
    if not inner or is_class:
        return folders
    return [
        found
        for folder in inner
        for found in _class_folders(join_root(name, folder), excluded, opener, depth + 1)
    ]


def location(name: str) -> str:
    """Returns where a root is, the same for all ways to write it."""
    return name.rstrip("/") if "://" in name else str(Path(name).resolve())


def root_names(roots: Sequence[str | Path]) -> list[str]:
    """Returns the names of roots as a table can hold them.

    Raises:
        DataError: One is named twice.
    """
    names = [escaped_name(str(root)) for root in roots]
    if len(set(names)) < len(names):
        raise DataError(f"A raw folder is named twice: {', '.join(names)}. Name each once.")
    return names


def split_of_root(root: str) -> str:
    """Returns the split that a root is named after ("images/val" -> "validation"), or ""."""
    path = root.partition("?")[0] if "://" in root else root
    return _SPLIT_NAMES.get(normalised(Path(path).name.removesuffix(".zip")), "")


def _list_root(
    listing: Listing, name: str, classes: ClassSet, opener: Opener, depth: int = 0
) -> bool:
    """Adds the files of a root, and those that are left out; returns whether a class is there."""
    root = opener(name)
    folders = root.folders()
    visible = [folder for folder in folders if not is_hidden(folder)]
    class_of = {folder: class_name for folder in visible if (class_name := classes.match(folder))}
    for folder, class_name in class_of.items():
        list_folder(listing, name, root, folder, class_name=class_name)
    listed = list(class_of)
    if not listed and depth < MAX_DEPTH:
        listed = [
            folder
            for folder in _inner_roots(visible)
            if _list_root(listing, join_root(name, folder), classes, opener, depth + 1)
        ]
    # A folder within is left out as a whole, by the one that it is in.
    if listed or not depth:
        listing.left_out += _left_out(name, root, [f for f in folders if f not in listed])
    return bool(listed)


def _inner_roots(folders: Sequence[str]) -> Sequence[str]:
    """Returns the folders in which class folders may lie, where there are none."""
    splits = [folder for folder in folders if split_of_root(folder)]
    return splits or (folders if len(folders) == 1 else [])


def list_folder(
    listing: Listing, name: str, root: Root, folder: str, *, class_name: str, kind: str = ""
) -> None:
    """Adds every file of a folder that is not in a hidden one.

    Args:
        listing: What to add them to.
        name: Name of the root.
        root: The root.
        folder: Its folder.
        class_name: Class of the files.
        kind: Kind of the files, if they are negatives.
    """
    hidden: Counter[str] = Counter()
    for entry in root.entries(folder):
        if hidden_folder := _hidden_folder(entry):
            hidden[hidden_folder] += 1
            continue
        listing.files.append(raw_file(name, entry, class_name, kind))
    listing.left_out += [
        LeftOut(root=name, folder=path, reason="hidden", num_files=count)
        for path, count in sorted(hidden.items())
    ]


def raw_file(root: str, entry: Entry, class_name: str, kind: str = "") -> RawFile:
    """Returns a file of a root with its class, and its kind if it is a negative."""
    return RawFile(
        root=root,
        path=entry.path,
        class_name=class_name,
        kind=kind,
        size_bytes=entry.size_bytes,
        change_token=entry.change_token,
    )


def _hidden_folder(entry: Entry) -> str:
    """Returns the path of the outermost hidden folder that a file is in, or ""."""
    parts = entry.path.split("/")[:-1]
    number = next((number for number, part in enumerate(parts) if is_hidden(part)), None)
    return "" if number is None else "/".join(parts[: number + 1])


def is_hidden(folder: str) -> bool:
    """Returns whether a folder is one of previews, deleted files or metadata."""
    return folder.startswith(".") or folder in _SYSTEM_FOLDERS


def _left_out(name: str, root: Root, folders: Sequence[str]) -> list[LeftOut]:
    """Returns what is left out directly below a root: these folders, and images in none."""
    left_out = [
        LeftOut(
            root=name,
            folder=folder,
            reason="hidden" if is_hidden(folder) else "no class",
            num_files=count_files(root, folder),
        )
        for folder in folders
    ]
    # By name, since lists and notes of a collection often lie there too.
    num_images = sum(is_image(entry.path) for entry in root.loose_files())
    if num_images:
        left_out.append(
            LeftOut(root=name, folder="", reason="no class folder", num_files=num_images)
        )
    return left_out


def is_image(file: str) -> bool:
    """Returns whether a file is an image by its name."""
    return (mimetypes.guess_type(file)[0] or "").startswith("image/")


def count_files(root: Root, folder: str) -> int:
    """Returns the number of files in a folder that is left out."""
    count = 0
    # Nothing in it is needed, so it may also be unreadable.
    with contextlib.suppress(DataError):
        for _ in itertools.islice(root.entries(folder), _MAX_COUNTED):
            count += 1
    return count


def _check_classes(
    listing: Listing, roots: Sequence[str], classes: ClassSet, *, require_all: bool
) -> None:
    present = {file.class_name for file in listing.files}
    names = ", ".join(roots)
    if not present:
        unknown = [item.folder for item in listing.left_out if item.reason == "no class"]
        raise _no_class(roots, classes, unknown, may_choose=require_all)
    missing = [name for name in classes if name not in present]
    if missing and require_all:
        raise DataError(
            f"{names} holds no file of {listed([repr(name) for name in missing])}: the folder is "
            f"missing or empty. Add images, or name all classes that you have, at least two: "
            f"--classes {' '.join(quoted(name) for name in classes if name in present)}"
        )


def _no_class(
    roots: Sequence[str], classes: ClassSet, unknown: Sequence[str], *, may_choose: bool
) -> DataError:
    """Returns the error where no folder of a class holds a file."""
    inside = [name for name in roots if classes.match(Path(name).name)]
    if inside:
        return DataError(
            f"{inside[0]} is the folder of a class itself. Name the folder above it, which has "
            f"one per class: {quoted(Path(inside[0]).parent)}"
        )
    names = ", ".join(roots)
    if not unknown:
        return DataError(
            f"{names} has no folders with files. Name a folder that has one per class: "
            f"{listed(classes)}."
        )
    hint = ", or name your own classes with --classes; folders takes these" if may_choose else ""
    return DataError(
        f"No folder in {names} matches a class. Folders there: {listed(unknown)}. Rename them to "
        f"the classes ({listed(classes)}){hint}."
    )
