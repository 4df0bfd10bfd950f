"""Files and folders that are replaced as a whole, and locks that name their holder."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drone.errors import LockedError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Both from Linux's headers: `man 2 renameat2`."""

_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""Errors of file systems (NFS, some FUSE) and sandboxes that cannot exchange two names."""

_LOCK_POLL_S = 0.05


def checksum(file: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class SchemaError(ValueError):
    """A file was written by a version of this program that arranges it in another way.

    Attributes:
        schema: The schema that the file names.
    """

    def __init__(self, schema: object) -> None:
        super().__init__(f"its schema is {schema}")
        self.schema = schema


def seal(content: Mapping[str, Any], schema: int) -> bytes:
    """Returns a JSON object as text with its schema and a checksum; `unseal` reads it."""
    content = {"schema": schema, **content}
    sealed = {**content, "checksum": _content_checksum(content)}
    return json.dumps(sealed, indent=1).encode() + b"\n"


def unseal(text: bytes, schema: int) -> dict[str, Any]:
    """Returns the content of a sealed JSON object.

    Raises:
        SchemaError: It has another schema.
        ValueError: It is not what was sealed.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    is_intact = content.pop("checksum", None) == _content_checksum(content)
    named = content.pop("schema", None)
    # Older schemas had no checksum. With one, another schema may just be a damaged digit.
    if named != schema and (is_intact or named in range(1, schema)):
        raise SchemaError(named)
    if not is_intact:
        raise ValueError("its checksum differs")
    return content


def _content_checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_whole(file: Path, content: bytes, temporary: Path | None = None) -> None:
    """Writes a file so that it has its old content or all of the new one, whatever happens.

    Args:
        file: The file. Two processes must not write it at once.
        content: What it is to hold.
        temporary: Where it is written first, on the same disk; by default a hidden file beside it.

    Raises:
        OSError: It cannot be written; the old file stays as it was.
    """
    # One name for all attempts: what a kill leaves behind goes with the next one.
    temporary = temporary or file.with_name(f".{file.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(file.parent)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields a temporary file beside another, which it replaces once the block has filled it.

    Like `write_whole`, for content that is written bit by bit.

    Raises:
        OSError: It cannot be written; the old file stays as it was.
    """
    temporary = file.with_name(f".{file.name}.new")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(file.parent)


def flush(folder: Path) -> None:
    """Writes everything in a folder through to the disk, so that a power cut cannot lose it.

    Raises:
        OSError: The disk is full or fails.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            with Path(parent, name).open("rb") as stream:
                os.fsync(stream.fileno())
        _flush_folder(Path(parent))


def _flush_folder(folder: Path) -> None:
    # Some network file systems do not flush folders, and need not: they write through.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(new: Path, folder: Path) -> None:
    """Puts a complete folder in the place of another, or where there was none.

    The old one is removed afterwards. Where the file system can exchange two names in one step,
    there is no moment without the folder. Otherwise a kill between two renames leaves the old one
    under `superseded_name(folder)`, from which `recover_folder` restores it.

    Raises:
        OSError: The folder could not be replaced, and is as it was.
    """
    flush(new)
    if not folder.exists():
        new.rename(folder)
    elif _exchange(new, folder):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = superseded_name(folder)
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _flush_folder(folder.parent)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside another, which it replaces once the block has filled it.

    Raises:
        OSError: It cannot be written, or the folder could not be replaced, which is as it was.
    """
    building = building_name(folder)
    shutil.rmtree(building, ignore_errors=True)  # Of a process that was killed.
    building.mkdir()
    try:
        yield building
        replace_folder(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    if library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(first))


def building_name(folder: Path) -> Path:
    """Returns the name under which the folder's replacement is built, beside it."""
    return folder.with_name(f".{folder.name}.new")


def superseded_name(folder: Path) -> Path:
    """Returns the name that the folder has for a moment while it is replaced."""
    return folder.with_name(f".{folder.name}.old")


def recover_folder(folder: Path) -> list[str]:
    """Cleans up after a process that was killed while it replaced the folder.

    Only for the holder of the folder's lock: what is left then belongs to no living process.

    Returns:
        What was done, in sentences for the user.
    """
    done = []
    new, old = building_name(folder), superseded_name(folder)
    if old.exists():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            done.append(f"Removed {old}, which an interrupted run had replaced with {folder}.")
        else:
            old.rename(folder)
            done.append(f"Restored {folder} from {old}: a run was killed while it replaced it.")
    if new.exists():
        shutil.rmtree(new, ignore_errors=True)
        done.append(f"Removed {new}, which a run that was killed had left unfinished.")
    return done


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock or a lease."""

    program: str
    pid: int
    host: str
    since: str
    """Local time with its offset from UTC, ISO 8601."""

    def __str__(self) -> str:
        return f"{self.program} (process {self.pid} on {self.host}, since {self.since})"


def this_process() -> Holder:
    """Returns this process as the holder of a lock."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "Python"
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Holder(program, os.getpid(), socket.gethostname(), since)


@contextlib.contextmanager
def locked(file: Path, what: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Holds a lock, which ends with the process at the latest.

    Args:
        file: The lock's file; created, and removed at the end. Its folder must exist.
        what: What the lock protects, for the error.
        wait_s: Seconds to wait for another process before failing.

    Raises:
        LockedError: Another process holds the lock; names it.
        OSError: The file cannot be written.
    """
    descriptor = _acquire(file, what, time.monotonic() + wait_s)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(this_process())).encode(), 0)
        yield
    finally:
        # While it is still locked: who opened this file meanwhile sees that it is gone, and opens
        # a new one.
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(file: Path, what: str, give_up_at: float) -> int:
    """Returns the descriptor of the locked file."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, file):
                return descriptor
        except BlockingIOError as error:
            # Not a lock that waits by itself: of a holder that was stopped it would wait for ever.
            if time.monotonic() >= give_up_at:
                holder = _read_holder(descriptor)
                os.close(descriptor)
                raise LockedError(
                    f"{what} is being written by {holder}. Wait until it has finished, or stop it."
                ) from error
            time.sleep(_LOCK_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # The holder has it, or has just removed this file.


def _is_named(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _read_holder(descriptor: int) -> str:
    try:
        return str(Holder(**json.loads(os.pread(descriptor, 4096, 0))))
    except (ValueError, TypeError):  # It has locked the file and not yet written its name.
        return "another process"
