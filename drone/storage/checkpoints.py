"""Checkpoints in storage: finding the newest, fetching, saving, retention."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from pyarrow import fs

from drone.errors import ResumableError, RunError
from drone.files import SchemaError, unseal
from drone.storage.filesystem import copy_here, is_object_storage, open_filesystem, probe
from drone.training.checkpoint import SCHEMA, STATE_FILE, is_whole, other_schema

MAX_OUTAGE_S = 120.0
"""Seconds that storage may fail before a run does."""

_RETRY_S = 2.0


@dataclass(frozen=True)
class StoredCheckpoint:
    """A complete checkpoint in storage."""

    location: str
    """Its folder, as path or URI."""

    epoch: int
    batch: int
    checksums: Mapping[str, str]
    """SHA-256 of its files by name."""


def newest(
    location: str, notify: Callable[[str], None] = lambda message: None
) -> StoredCheckpoint | None:
    """Returns the most advanced checkpoint below a folder, over all attempts; None without one.

    One that is damaged, or was not copied to its end, is passed over.

    Args:
        location: Folder or URI.
        notify: Called with a message for each damaged one.

    Raises:
        RunError: One is of another version of this program.
    """
    # By position: each attempt has a folder of its own, and the latest may have got less far.
    by_position = attrgetter("epoch", "batch")
    for stored in sorted(_checkpoints(location), key=by_position, reverse=True):
        if _is_intact(stored):
            return stored
        notify(f"The checkpoint {stored.location} is damaged; the one before it is used.")
    return None


def _checkpoints(location: str) -> Iterator[StoredCheckpoint]:
    filesystem, path = open_filesystem(location)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    # pyarrow returns paths without the scheme; callers pass the location on to other processes.
    prefix = location[: len(location) - len(path)] if "://" in location else ""
    try:
        files = {info.path for info in filesystem.get_file_info(selector)}
    except UnicodeDecodeError as error:
        raise RunError(
            f"The storage {location} holds a file whose name is not UTF-8. Move it away: "
            f"{error.object!r}."
        ) from error
    for file in files:
        folder, _, name = file.rpartition("/")
        if name != STATE_FILE:
            continue
        try:
            with filesystem.open_input_stream(file) as stream:
                state = unseal(stream.read(), SCHEMA)
        except SchemaError as error:
            raise other_schema(prefix + folder, error) from error
        except ValueError:
            continue  # Cut short: the copy was not completed.
        # The state names every other file, and is the first to arrive in some storage.
        if all(f"{folder}/{part}" in files for part in state["files"]):
            position = state["position"]
            yield StoredCheckpoint(
                prefix + folder, position["epoch"], position["batch"], state["files"]
            )


def _is_intact(stored: StoredCheckpoint) -> bool:
    filesystem, path = open_filesystem(stored.location)
    for name, expected in stored.checksums.items():
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                return False
    return True


def fetch(location: str, target: Path) -> Path:
    """Copies a checkpoint folder to this machine.

    Returns:
        The target.

    Raises:
        RunError: The checkpoint is gone or damaged.
    """
    try:
        copy_here(location, target)
    except OSError as error:
        raise RunError(f"Cannot read the checkpoint {location}: {error}.") from error
    if not is_whole(target):
        raise RunError(f"The checkpoint {location} was damaged while it was copied. Try again.")
    return target


def save(folder: Path, location: str, name: str) -> None:
    """Copies a checkpoint folder to storage, then applies retention: older ones there are deleted.

    Args:
        folder: Local checkpoint.
        location: Folder or URI that holds the checkpoints of one run.
        name: Name of the new checkpoint; names sort by age.
    """
    filesystem, path = open_filesystem(location)
    target = f"{path}/{name}"
    filesystem.create_dir(target, recursive=True)
    fs.copy_files(
        str(folder),
        target,
        source_filesystem=fs.LocalFileSystem(),
        destination_filesystem=filesystem,
    )
    # Only now: until the copy is complete the older one is what a resumed run starts from.
    for info in filesystem.get_file_info(fs.FileSelector(path, recursive=False)):
        if info.type == fs.FileType.Directory and info.base_name < name:
            filesystem.delete_dir(info.path)


def delete_all(location: str) -> None:
    """Deletes a folder of checkpoints that will not be resumed."""
    filesystem, path = open_filesystem(location)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def wait_for_space(location: str, checkpoint: Path, notify: Callable[[str], None]) -> None:
    """Returns when a checkpoint can be written; retries while the storage fails.

    Args:
        location: Folder or URI to write to.
        checkpoint: Local folder that is about to be copied there.
        notify: Called with a message when the storage fails, and when it is back.

    Raises:
        ResumableError: The storage fails for longer than `MAX_OUTAGE_S`.
    """
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    # Object storage does not run full, and its uploads cost.
    probe_bytes = 1 if is_object_storage(location) else size
    give_up_at, failed = time.monotonic() + MAX_OUTAGE_S, False
    while True:
        try:
            probe(location, probe_bytes)
        except OSError as error:
            if time.monotonic() >= give_up_at:
                raise ResumableError(
                    f"The storage {location} could not be written for {MAX_OUTAGE_S:.0f} s: "
                    f"{error}. Free some space or repair it; earlier checkpoints are safe."
                ) from error
            if not failed:
                notify(f"The storage {location} cannot be written ({error}). Training waits.")
            failed = True
            time.sleep(_RETRY_S)
        else:
            if failed:
                notify("The storage is back; training continues.")
            return
