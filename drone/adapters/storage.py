"""Checkpoints where a run keeps them: a local or shared folder, or object storage."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from drone.errors import ConfigError, RunError
from drone.training.checkpoint import is_whole


def resolve(place: str) -> str:
    """An absolute path or a URI that any node understands, and that can be written.

    Raises:
        ConfigError: no file system for such a URI, or it cannot be written.
    """
    if "://" not in place:
        place = str(Path(place).expanduser().resolve())
    filesystem, path = _open(place)
    probe = f"{path}/.probe-{uuid.uuid4().hex}"
    try:
        filesystem.create_dir(path, recursive=True)
        with filesystem.open_output_stream(probe) as stream:
            stream.write(b"probe")
        filesystem.delete_file(probe)
    except OSError as error:
        raise ConfigError(
            f"The storage {place} cannot be written: {error}. Choose another --storage."
        ) from error
    return place


def _open(place: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, path = fs.FileSystem.from_uri(place)
    except (ValueError, OSError) as error:
        raise ConfigError(f"The storage {place} cannot be opened: {error}") from error
    return filesystem, path


@dataclass(frozen=True)
class Stored:
    """A checkpoint in storage."""

    place: str
    """Its folder, as path or URI."""

    epoch: int
    batch: int


def newest(place: str) -> Stored | None:
    """The checkpoint below a folder that got furthest, of all attempts; None if there is none."""
    found = sorted(_checkpoints(place), key=lambda stored: (stored.epoch, stored.batch))
    return found[-1] if found else None


def _checkpoints(place: str) -> Iterator[Stored]:
    filesystem, path = _open(place)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    prefix = place[: len(place) - len(path)] if "://" in place else ""
    sizes = {info.path: info.size for info in filesystem.get_file_info(selector)}
    for file in sizes:
        folder, _, name = file.rpartition("/")
        if name != "state.json":
            continue
        state = _read_json(filesystem, file)
        whole = all(
            sizes.get(f"{folder}/{part}") == size for part, size in state.get("files", {}).items()
        )
        if whole and "position" in state:
            position = state["position"]
            yield Stored(prefix + folder, position["epoch"], position["batch"])


def _read_json(filesystem: fs.FileSystem, file: str) -> dict[str, Any]:
    with filesystem.open_input_stream(file) as stream:
        try:
            content: dict[str, Any] = json.loads(stream.read())
        except ValueError:
            return {}  # Cut short: not a whole checkpoint.
    return content


def fetch(place: str, target: Path) -> Path:
    """A local copy of a checkpoint folder.

    Raises:
        RunError: it is gone or damaged.
    """
    filesystem, path = _open(place)
    target.mkdir(parents=True, exist_ok=True)
    try:
        fs.copy_files(
            path,
            str(target),
            source_filesystem=filesystem,
            destination_filesystem=fs.LocalFileSystem(),
        )
    except OSError as error:
        raise RunError(f"The checkpoint {place} cannot be read: {error}") from error
    if not is_whole(target):
        raise RunError(f"The checkpoint {place} is damaged: a file is missing or cut short.")
    return target


def keep(folder: Path, place: str, name: str) -> None:
    """Copies a checkpoint folder to a place; the older ones there go when it is whole."""
    filesystem, path = _open(place)
    target = f"{path}/{name}"
    filesystem.create_dir(target, recursive=True)
    fs.copy_files(
        str(folder),
        target,
        source_filesystem=fs.LocalFileSystem(),
        destination_filesystem=filesystem,
    )
    selector = fs.FileSelector(path, recursive=False)
    for info in filesystem.get_file_info(selector):
        if info.type == fs.FileType.Directory and info.base_name < name:
            filesystem.delete_dir(info.path)


def clear(place: str) -> None:
    """Deletes a folder of checkpoints that nobody will go on from."""
    filesystem, path = _open(place)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)
