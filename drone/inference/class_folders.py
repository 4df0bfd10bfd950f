"""Lays images out in one folder per class: as links, or as copies."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from drone.errors import ConfigError, DataError
from drone.files import replacing_folder
from drone.inference.items import Item
from drone.names import check_folder_name

Layout = Literal["link", "copy"]


def check_layout(items: list[Item], layout: Layout) -> None:
    """Checks that images can be laid out, before they are predicted.

    Raises:
        ConfigError: Some are not files of this machine, and there are no links to those.
    """
    remote = next((item for item in items if item.local_file is None), None)
    if layout == "link" and remote is not None:
        raise ConfigError(
            f"--sort link cannot link to {remote.path}, which is in an archive or in object "
            f"storage. Use --sort copy."
        )


def lay_out(
    labelled: Iterator[tuple[Item, str]],
    layout: Layout,
    folder: Path,
    read: Callable[[Item], bytes],
) -> int:
    """Writes a folder of class folders; an older one is replaced as a whole.

    Args:
        labelled: Items with their labels.
        layout: Links or copies.
        folder: The folder.
        read: Returns the content of an item's file.

    Returns:
        The number of files in it.

    Raises:
        ConfigError: A label cannot be the name of a folder.
        DataError: A file cannot be read any more.
        OSError: The folder cannot be written.
    """
    count = 0
    with replacing_folder(folder) as building:
        for item, label in labelled:
            check_folder_name(label, "The name of a class")
            (building / label).mkdir(exist_ok=True)
            _place(item, layout, _free_name(building / label, item), read)
            count += 1
    return count


def _free_name(folder: Path, item: Item) -> Path:
    """Returns the path of an item in a class folder; files of several folders may share a name."""
    path = folder / item.name.rpartition("/")[2]
    # By the key and not by a counter: whatever else is predicted, a file keeps its name.
    taken = path.is_symlink() or path.exists()
    return path.with_stem(f"{path.stem}-{item.key[:8]}") if taken else path


def _place(item: Item, layout: Layout, target: Path, read: Callable[[Item], bytes]) -> None:
    if layout == "link":
        assert item.local_file is not None
        target.symlink_to(item.local_file)
        return
    try:
        data = read(item)
    except OSError as error:
        raise DataError(
            f"{item.path} was predicted but can no longer be read: {error}. Put it back, or leave "
            f"out --sort."
        ) from error
    target.write_bytes(data)
