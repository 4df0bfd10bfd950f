"""Which images a user has named: folders, zip archives, files, globs and URIs."""

import glob
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from drone.data.prepare.listing import is_hidden
from drone.data.prepare.roots import Opener, escaped_name, on_disk, open_root
from drone.errors import DataError
from drone.inference.clips import FRAMES_PER_S, numbered_images
from drone.inference.items import Item


def list_items(
    names: Sequence[str],
    opener: Opener = open_root,
    is_file: Callable[[str], bool] = lambda uri: False,
) -> list[Item]:
    """Lists every file that is named, each once, sorted by path within a name.

    Hidden files and folders are left out, unless they are named themselves. Whether a file is an
    image is found when it is read. A folder that holds numbered images alone is a clip.

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
            items = _items(root, file, opener)
            for item in items if file else _as_frames(items):
                found.setdefault(item.path, item)
    if not found:
        raise DataError(f"{', '.join(names)} holds no files. Name a folder with images in it.")
    return list(found.values())


def sampled(items: Sequence[Item], every_s: float | None) -> list[Item]:
    """Returns the items without those frames of folders that come too soon after the one before.

    Args:
        items: From `list_items`.
        every_s: Seconds from one frame to the next; None or 0 for all.
    """
    steps: set[tuple[str, int]] = set()
    chosen = []
    for item in items:
        if item.time_s is not None and every_s:
            # A little more: times are rounded.
            step = item.sequence, int(item.time_s / every_s + 1e-6)
            if step in steps:
                continue
            steps.add(step)
        chosen.append(item)
    return chosen


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


def _as_frames(items: list[Item]) -> list[Item]:
    """Returns the images of a folder as frames of one clip, if their names are numbered."""
    folder = on_disk(Path(items[0].root)) if items else Path()
    if not items or "://" in items[0].root or not folder.is_dir():
        return items
    numbers = {path.name: number for number, path in numbered_images(folder).items()}
    if numbers.keys() != {item.name for item in items}:
        return items
    # Times from the numbers alone: what else is in the folder may change.
    frames = [
        replace(
            item,
            sequence=item.root,
            frame=numbers[item.name],
            time_s=numbers[item.name] / FRAMES_PER_S,
        )
        for item in items
    ]
    return sorted(frames, key=lambda item: numbers[item.name])


def _change_token(root: str, file: str) -> str:
    """Returns what differs when a local file has changed; empty if nothing tells."""
    try:
        status = on_disk(Path(root, file)).stat()
    except OSError:  # Of a URI, or a link that leads nowhere.
        return ""
    return f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
