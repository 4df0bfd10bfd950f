"""Which images a user has named: folders, zip archives, files, globs and URIs."""

import glob
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from drone.data.prepare.listing import is_hidden
from drone.data.prepare.roots import Opener, escaped_name, on_disk, open_root
from drone.errors import DataError
from drone.inference.items import Item


def list_items(
    names: Sequence[str],
    opener: Opener = open_root,
    is_file: Callable[[str], bool] = lambda uri: False,
) -> list[Item]:
    """Lists every file that is named, each once, sorted by path within a name.

    Hidden files and folders are left out, unless they are named themselves. Whether a file is an
    image is found when it is read.

    Args:
        names: Folders, zip archives, files, globs or URIs.
        opener: Opens a root by its name.
        is_file: Whether a URI names one file, and not a folder.

    Raises:
        DataError: A name leads to nothing, or there are no files.
    """
    found: dict[str, Item] = {}
    for name in names:
        for root, file in _roots(name, is_file):
            for item in _items(root, file, opener):
                found.setdefault(item.path, item)
    if not found:
        raise DataError(f"{', '.join(names)} holds no files. Name a folder with images in it.")
    return list(found.values())


def _roots(name: str, is_file: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yields the roots that a name leads to, each with the path of one file, empty for all."""
    if "://" in name:
        yield _split_uri(name) if is_file(name) else (name, "")
        return
    path = Path(name).expanduser()
    paths = [path] if path.exists() else [Path(found) for found in _matches(str(path))]
    if not paths:
        raise DataError(
            f"{name} does not exist. Name folders, zip archives, images, a glob in quotes or a URI "
            f"(s3://...)."
        )
    for matched in paths:
        # Absolute: valid in every process and folder. Not resolved: a link keeps its name.
        absolute = matched.absolute()
        if absolute.is_dir() or zipfile.is_zipfile(absolute):
            yield escaped_name(str(absolute)), ""
        else:
            yield escaped_name(str(absolute.parent)), escaped_name(absolute.name)


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return []
    # Not Path.glob, which takes no absolute patterns.
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207


def _split_uri(uri: str) -> tuple[str, str]:
    """Returns the folder of a file, with the query of its URI, and the name of the file."""
    path, mark, query = uri.partition("?")
    folder, _, file = path.rpartition("/")
    return f"{folder}{mark}{query}", file


def _items(root: str, file: str, opener: Opener) -> list[Item]:
    if file:
        return [Item(root=root, name=file, change_token=_change_token(root, file))]
    items = [
        Item(root=root, name=entry.path, change_token=entry.change_token)
        for entry in opener(root).entries("")
        if not any(is_hidden(part) for part in entry.path.split("/"))
    ]
    return sorted(items, key=lambda item: item.name)


def _change_token(root: str, file: str) -> str:
    """Returns what differs when a local file has changed; empty if nothing tells."""
    try:
        status = on_disk(Path(root, file)).stat()
    except OSError:  # Of a URI, or a link that leads nowhere.
        return ""
    return f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
