"""Checkpoints where a run keeps them: a local or shared folder, or object storage."""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from drone.errors import ConfigError, RunError
from drone.training.checkpoint import STATE_FILE, is_whole

PATIENCE_S = 120.0
"""Seconds that a place may fail before a run does."""

_RETRY_S = 2.0

HEAD = "head"
"""Scheme of places on the machine that the job runs on, as other machines reach them."""


def resolve(place: str) -> str:
    """An absolute path or a URI that any node understands, and that can be written.

    Raises:
        ConfigError: no file system for such a URI, or it cannot be written.
    """
    place = absolute(place)
    try:
        _probe(place, 1)
    except OSError as error:
        raise ConfigError(
            f"The storage {place} cannot be written: {error}. Choose another --storage."
        ) from error
    return place


def _probe(place: str, size: int) -> None:
    """Writes and deletes a file of some bytes.

    Raises:
        OSError: the place cannot be written, or has no room for it.
    """
    filesystem, path = _open(place)
    probe = f"{path}/.probe-{uuid.uuid4().hex}"
    filesystem.create_dir(path, recursive=True)
    try:
        with filesystem.open_output_stream(probe) as stream:
            stream.write(bytes(size))
    finally:
        with contextlib.suppress(OSError):
            filesystem.delete_file(probe)


def wait_for_room(place: str, checkpoint: Path, say: Callable[[str], None]) -> None:
    """Returns when a checkpoint can be written; a place that fails for a while is waited for.

    Args:
        place: folder or URI.
        checkpoint: local folder that is about to go there.
        say: hears that the place fails, and that it is back.

    Raises:
        RunError: it fails for longer than `PATIENCE_S`.
    """
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    # Object storage does not run full, and its uploads cost.
    room = size if "://" not in place or place.startswith(f"{HEAD}://") else 1
    give_up_at, failed = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            _probe(place, room)
        except OSError as error:
            if time.monotonic() >= give_up_at:
                raise RunError(
                    f"The storage {place} could not be written for {PATIENCE_S:.0f} s: {error}. "
                    f"What was reported before is safe: mend it or make room, then --resume."
                ) from error
            if not failed:
                say(f"The storage {place} cannot be written ({error}). Training waits for it.")
            failed = True
            time.sleep(_RETRY_S)
        else:
            if failed:
                say("The storage is back; training goes on.")
            return


def absolute(place: str) -> str:
    """A folder from the root, so that it means the same elsewhere; a URI as it is."""
    return place if "://" in place else str(Path(place).expanduser().resolve())


def for_ray(place: str) -> tuple[str, fs.FileSystem | None]:
    """A place as Ray's run configurations take it: path or URI, and a file system of ours."""
    if place.startswith(f"{HEAD}://"):
        filesystem, path = _open(place)
        return path, filesystem
    return place, None


def _open(place: str) -> tuple[fs.FileSystem, str]:
    if place.startswith(f"{HEAD}://"):
        from drone.adapters.head_files import HeadFileSystem  # Needs Ray; plain places do not.

        return fs.PyFileSystem(fs.FSSpecHandler(HeadFileSystem())), place.removeprefix(f"{HEAD}://")
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
        if name != STATE_FILE:
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
    try:
        copy_here(place, target)
    except OSError as error:
        raise RunError(f"The checkpoint {place} cannot be read: {error}") from error
    if not is_whole(target):
        raise RunError(f"The checkpoint {place} is damaged: a file is missing or cut short.")
    return target


def copy_here(place: str, target: Path) -> None:
    """Copies a folder of any place into a local one, which is made.

    Raises:
        OSError: it cannot be read or written.
    """
    filesystem, path = _open(place)
    target.mkdir(parents=True, exist_ok=True)
    fs.copy_files(
        path,
        str(target),
        source_filesystem=filesystem,
        destination_filesystem=fs.LocalFileSystem(),
    )


def read_text(place: str) -> str:
    """A small text file of any place.

    Raises:
        OSError: it cannot be read.
    """
    filesystem, path = _open(place)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read()).decode("utf-8")


def write_text(place: str, text: str) -> None:
    """Writes a small text file to any place; its folder is made.

    Raises:
        OSError: it cannot be written.
    """
    filesystem, path = _open(place)
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(path) as stream:
        stream.write(text.encode("utf-8"))


def delete_file(place: str) -> None:
    """Deletes a file of any place."""
    filesystem, path = _open(place)
    filesystem.delete_file(path)


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
