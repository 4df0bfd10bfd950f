"""Roots of raw images: a local folder or zip archive, or another source opened by its name.

`Root` is the interface. `open_root` opens what is on this machine; `drone.storage.raw_roots`
adds object storage.
"""

import functools
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drone.errors import DataError

_RESOURCE_FORKS = "__MACOSX"
"""Folder that macOS adds to archives; it holds none of the user's files."""


@dataclass(frozen=True)
class Entry:
    """One file below a root."""

    path: str
    """Path below the root, with forward slashes; its first part is the class folder."""

    size_bytes: int

    change_token: str
    """Differs when the content does, as far as the root can tell without reading the file: a
    modification time or a checksum. Empty if unknown."""


class Root(Protocol):
    """A folder, an archive or a bucket with one folder per class."""

    def folders(self) -> list[str]:
        """Returns the names of the folders directly below the root, sorted."""

    def entries(self, folder: str) -> Iterator[Entry]:
        """Yields every file below one of these folders, at any depth."""

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
    path = Path(name)
    if path.is_dir():
        return _Folder(path)
    for file in (path, *path.parents):
        if file.is_file() and zipfile.is_zipfile(file):
            return _ZipArchive(file, path.relative_to(file).as_posix())
    problem = "is neither a folder nor a zip archive" if path.exists() else "does not exist"
    raise DataError(
        f"{name} {problem}. Give a folder, a zip archive or a URI (s3://...) with one folder per "
        f"class in it."
    )


def join_root(name: str, folder: str) -> str:
    """Returns the name of the root that is a folder of another root; a URI keeps its query."""
    path, mark, query = name.partition("?") if "://" in name else (name, "", "")
    return f"{path.rstrip('/')}/{folder}{mark}{query}"


class _Folder:
    """A local folder. Links to folders are not followed, since they may form a cycle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folders(self) -> list[str]:
        try:
            return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir())
        except OSError as error:
            raise _unreadable(error) from error

    def entries(self, folder: str) -> Iterator[Entry]:
        # os.walk skips folders that it cannot list, and their images would be missing silently.
        def fail(error: OSError) -> None:
            raise _unreadable(error) from error

        for directory, _, names in os.walk(self.path / folder, onerror=fail):
            for name in names:
                file = Path(directory) / name
                try:
                    status = file.stat()
                    size, change_token = status.st_size, str(status.st_mtime_ns)
                except OSError:  # A broken or circular link: the scan reports it as unreadable.
                    size, change_token = 0, ""
                yield Entry(file.relative_to(self.path).as_posix(), size, change_token)

    def read(self, path: str, max_bytes: int) -> bytes:
        # Reading a pipe or a device might never end: opened without blocking, then refused.
        with os.fdopen(os.open(self.path / path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise OSError(0, "it is not a regular file", path)
            return stream.read(max_bytes + 1)


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
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{file} cannot be read as a zip archive: {error}.") from error
        prefix = "" if inner == "." else f"{inner}/"
        self._files = {
            item.filename.removeprefix(prefix): item
            for item in self._zip.infolist()
            if item.filename.startswith(prefix)
            and not item.is_dir()
            and not item.filename.startswith(f"{_RESOURCE_FORKS}/")
        }

    def folders(self) -> list[str]:
        return sorted({path.split("/")[0] for path in self._files if "/" in path})

    def entries(self, folder: str) -> Iterator[Entry]:
        for path, item in self._files.items():
            if path.startswith(f"{folder}/"):
                yield Entry(path, item.file_size, f"{item.CRC:08x}")

    def read(self, path: str, max_bytes: int) -> bytes:
        try:
            with self._zip.open(self._files[path]) as stream:
                return stream.read(max_bytes + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
            raise OSError(0, f"damaged in the archive ({error})", path) from error
        except (RuntimeError, NotImplementedError) as error:
            # zipfile raises these for encrypted members and unknown compression methods.
            raise OSError(0, str(error), path) from error
