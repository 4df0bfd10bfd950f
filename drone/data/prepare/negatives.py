"""Which files are in folders of negatives: images that show none of the classes, by kind."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from drone.commands import quoted
from drone.data.prepare.class_names import check_kind
from drone.data.prepare.listing import (
    MAX_DEPTH,
    LeftOut,
    Listing,
    count_files,
    is_hidden,
    is_image,
    list_folder,
    list_raw_files,
    location,
    raw_file,
    root_names,
    split_of_root,
)
from drone.data.prepare.roots import Opener, Root, join_root, open_root
from drone.errors import DataError
from drone.labels import NONE, ClassSet, composed, is_called

OTHER = "other"
"""Kind of the images that lie in no folder of a kind."""


def list_all_files(
    roots: Sequence[str | Path],
    negatives: Sequence[str | Path],
    classes: ClassSet,
    opener: Opener = open_root,
) -> Listing:
    """Lists the files of class folders, then those of negatives, each sorted by path.

    In this order, a policy that keeps the first of several copies keeps one that has a class.

    Args:
        roots: Raw folders, as for `list_raw_files`.
        negatives: Folders of negatives, as for `list_negatives`.
        classes: Classes to look for.
        opener: Opens a root by its name.

    Raises:
        DataError: As for these, or a raw folder has a folder that is called like no class.
    """
    listing = list_raw_files(roots, classes, opener=opener)
    of_none = list_negatives(negatives, classes, opener)
    left_out = _without_negatives(listing.left_out, [str(name) for name in negatives])
    return Listing([*listing.files, *of_none.files], [*left_out, *of_none.left_out])


def list_negatives(
    roots: Sequence[str | Path], classes: ClassSet, opener: Opener = open_root
) -> Listing:
    """Lists every file of folders of negatives.

    Each folder below a root is a kind, and images beside these folders are of the kind "other".
    The folders of kinds may lie in a folder of their own, as they often do in archives, or in
    folders named train, validation and test, each of which becomes a root.

    Args:
        roots: Folders, archives or URIs.
        classes: Classes, none of which may be a kind.
        opener: Opens a root by its name.

    Raises:
        DataError: A root cannot be opened, is named twice, has no files or has a class folder.
        ConfigError: A folder's name is no name of a kind.
    """
    listing = Listing()
    for name in root_names(roots):
        num_before = len(listing.files)
        _list_root(listing, name, classes, opener)
        if len(listing.files) == num_before:
            raise DataError(
                f"{name} holds no images. Name a folder of negatives with --negatives: images that "
                f"show none of the classes, in a subfolder per kind."
            )
    listing.files.sort(key=lambda file: (file.path, file.root))
    return listing


def _list_root(
    listing: Listing, name: str, classes: ClassSet, opener: Opener, depth: int = 0
) -> None:
    root = opener(name)
    folders = root.folders()
    kinds = [folder for folder in folders if not is_hidden(folder)]
    images = [entry for entry in root.loose_files() if is_image(entry.path)]
    listing.files += [raw_file(name, entry, NONE, OTHER) for entry in images]
    listing.left_out += [
        LeftOut(root=name, folder=folder, reason="hidden", num_files=count_files(root, folder))
        for folder in folders
        if is_hidden(folder)
    ]
    inner = [join_root(name, folder) for folder in kinds]
    if depth < MAX_DEPTH and (_are_splits(kinds) or (not images and _is_wrapper(inner, opener))):
        for inner_root in inner:
            _list_root(listing, inner_root, classes, opener, depth + 1)
        return
    for folder in kinds:
        _list_kind(listing, name, root, folder, classes)


def _are_splits(folders: Sequence[str]) -> bool:
    return bool(folders) and all(split_of_root(folder) for folder in folders)


def _is_wrapper(folders: Sequence[str], opener: Opener) -> bool:
    """Returns whether there is one folder only, and the kinds lie in it."""
    if len(folders) != 1:
        return False
    root = opener(folders[0])
    has_folders = any(not is_hidden(folder) for folder in root.folders())
    return has_folders and not any(is_image(entry.path) for entry in root.loose_files())


def _list_kind(listing: Listing, name: str, root: Root, folder: str, classes: ClassSet) -> None:
    class_name = classes.match(folder)
    if class_name:
        raise DataError(
            f"{join_root(name, folder)} is a folder of the class {class_name!r}, and --negatives "
            f"takes images that show none of the classes. Name {name} with --raw, or rename the "
            f"folder."
        )
    check_kind(folder, f"A folder of {name}, which names a kind of negatives,")
    list_folder(listing, name, root, folder, class_name=NONE, kind=composed(folder))


def _without_negatives(left_out: Iterable[LeftOut], negatives: Sequence[str]) -> list[LeftOut]:
    """Returns what is left out of raw folders, except for the folders of negatives in them."""
    locations = {location(name) for name in negatives}
    remaining = []
    for item in left_out:
        folder = join_root(item.root, item.folder)
        if item.folder and location(folder) in locations:
            continue
        if is_called(item.folder, NONE):
            raise DataError(
                f"{folder} is no class folder: images that show none of the classes are negatives. "
                f"Name it as such: --negatives {quoted(folder)}"
            )
        remaining.append(item)
    return remaining
