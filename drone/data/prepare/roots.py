"""Roots of raw images: a local folder or zip archive, or another source opened by its name.

`Root` is the interface. `open_root` opens what is on this machine; `drone.storage.raw_roots`
adds object storage.
"""

import functools
import itertools
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drone.errors import DataError

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError)
"""What zipfile raises for damaged archives and entries, besides OSError."""


def escaped_name(name: str) -> str:
    """Returns a file name that can be written to a table, whatever bytes it has on disk.

    A byte that is not UTF-8 becomes an escape such as \\xff, and `on_disk` turns it back.
    """
    # A name may really hold such an escape: its backslash becomes one itself.
    escaped = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(name))
    return escaped.decode("utf-8", "backslashreplace")


def on_disk(path: Path) -> Path:
    """Returns the path of the file that `escaped_name` gave this name."""
    name = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), bytes(path))
    return Path(os.fsdecode(name))


@dataclass(frozen=True)
class Entry:
    """One file below a root."""

    path: str
    """Path below the root, with forward slashes; its first part is the folder, if it is in one."""

    size_bytes: int

    change_token: str
    """Differs when the content does, as far as the root can tell without reading the file: a
    modification time or a checksum. Empty if unknown."""


class Root(Protocol):
    """A folder, an archive or a bucket with one folder per class."""

    def folders(self) -> list[str]:
        """Returns the names of the folders directly below the root, sorted."""

    def loose_files(self) -> list[Entry]:
        """Returns the files directly below the root."""

    def entries(self, folder: str) -> Iterator[Entry]:
        """Yields every file below one of these folders, at any depth; of all if it is empty."""

    def read(self, path: str, max_bytes: int) -> bytes:
        """Returns the content of a file, or its first `max_bytes` + 1 bytes if it is longer.

        Raises:
            OSError: The file cannot be read.
        """


Opener = Callable[[str], Root]
"""Opens a root by its name, so that a name is all that has to reach another process."""


@functools.lru_cache(maxsize=16)
def open_root(name: str) -> Root:
    """Opens a local folder or zip archive; `images.zip/inner` is a folder inside an archive.

    Raises:
        DataError: The name is neither.
    """
    path = on_disk(Path(name))
    if path.is_dir():
        return _Folder(path)
    for file in (path, *path.parents):
        if file.is_file() and zipfile.is_zipfile(file):
            return _ZipArchive(file, path.relative_to(file).as_posix())
    problem = "is neither a folder nor a zip archive" if path.exists() else "does not exist"
    raise DataError(
        f"{name} {problem}. Give a folder, a zip archive or a URI (s3://...) with one folder per "
        f"class, or per kind of negatives, in it."
    )


def join_root(name: str, folder: str) -> str:
    """Returns the name of the root that is a folder of another root; a URI keeps its query."""
    path, mark, query = name.partition("?") if "://" in name else (name, "", "")
    return f"{path.rstrip('/')}/{folder}{mark}{query}"


class _Folder:
    """A local folder. Links to folders are followed, unless they lead back to where they are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folders(self) -> list[str]:
        return sorted(escaped_name(child.name) for child in _children(self.path) if _is_dir(child))

    def loose_files(self) -> list[Entry]:
        return [self._entry(child) for child in _children(self.path) if not _is_dir(child)]

    def entries(self, folder: str) -> Iterator[Entry]:
        above = {_identity(path) for path in (self.path, *self.path.resolve().parents)}
        entered: set[tuple[int, int]] = set()
        # Not os.walk: it recurses, and folders may be nested a thousand deep.
        folders = [str(on_disk(self.path / folder))]
        links: list[str] = []
        while folders or links:
            # Links last: a folder that is reached both ways is listed under its own name.
            opened = folders.pop() if folders else links.pop()
            if (identity := _identity(opened)) in entered:
                continue
            entered.add(identity)
            for child in _children(opened):
                is_link = child.is_symlink()
                # A link to the root itself is listed, as a file that the scan cannot read.
                if not _is_dir(child) or (is_link and _identity(child.path) in above):
                    yield self._entry(child)
                else:
                    (links if is_link else folders).append(child.path)

    def _entry(self, file: "os.DirEntry[str]") -> Entry:
        path = escaped_name(Path(file.path).relative_to(self.path).as_posix())
        try:
            status = file.stat()
        except OSError:  # A broken or circular link: the scan reports it as unreadable.
            return Entry(path, 0, "")
        # The change time and the inode too: the other time can be set, and copies preserve it.
        times = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        return Entry(path, status.st_size, times)

    def read(self, path: str, max_bytes: int) -> bytes:
        file = on_disk(self.path / path)
        # Reading a pipe or a device might never end: opened without blocking, then refused.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise OSError(0, "it is not a regular file", path)
            return stream.read(max_bytes + 1)


def _children(folder: str | Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as children:
            return list(children)
    except OSError as error:  # Its images would be missing silently.
        raise _unreadable(error) from error


def _identity(folder: str | Path) -> tuple[int, int]:
    """Returns what two paths of the same folder have in common."""
    try:
        status = Path(folder).stat()
    except OSError as error:
        raise _unreadable(error) from error
    return status.st_dev, status.st_ino


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A circular link.
        return False


def _unreadable(error: OSError) -> DataError:
    return DataError(
        f"{error.filename} cannot be read: {error.strerror}. Its images would be missing from the "
        f"data set. Make it readable, or move it out of the raw folder."
    )


class _ZipArchive:
    """A zip archive of class folders, read in place without unpacking it."""

    def __init__(self, file: Path, inner: str) -> None:
        try:
            self._zip = zipfile.ZipFile(file)
        except (OSError, NotImplementedError, *_DAMAGED) as error:
            raise DataError(f"{file} cannot be read as a zip archive: {error}.") from error
        prefix = "" if inner == "." else f"{inner}/"
        self._files: dict[str, zipfile.ZipInfo] = {}
        for item in self._zip.infolist():
            path = item.filename.removeprefix(prefix)
            if item.filename.startswith(prefix) and not item.is_dir():
                self._files[self._unused(path)] = item

    def _unused(self, path: str) -> str:
        """Returns the path, with a number if an entry before has it: an archive may repeat one."""
        names = itertools.chain([path], (f"{path}#{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in self._files)

    def folders(self) -> list[str]:
        return sorted({path.split("/")[0] for path in self._files if "/" in path})

    def loose_files(self) -> list[Entry]:
        return [_entry(path, item) for path, item in self._files.items() if "/" not in path]

    def entries(self, folder: str) -> Iterator[Entry]:
        for path, item in self._files.items():
            if not folder or path.startswith(f"{folder}/"):
                yield _entry(path, item)

    def read(self, path: str, max_bytes: int) -> bytes:
        try:
            with self._zip.open(self._files[path]) as stream:
                return stream.read(max_bytes + 1)
        except (KeyError, *_DAMAGED) as error:
            raise OSError(0, f"damaged in the archive ({error})", path) from error
        except (RuntimeError, NotImplementedError) as error:
            # zipfile raises these for encrypted members and unknown compression methods.
            raise OSError(0, str(error), path) from error


def _entry(path: str, item: zipfile.ZipInfo) -> Entry:
    return Entry(path, item.file_size, f"{item.CRC:08x}")
