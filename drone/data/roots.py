"""Where raw pictures lie: a folder, a zip archive, or another place that is opened by its name."""

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

_RESOURCES = "__MACOSX"
"""Folder that macOS adds to archives: no files of the user's."""


@dataclass(frozen=True)
class Entry:
    """One file below a root."""

    path: str
    """Below the root, with forward slashes; its first part is the class folder."""

    size_bytes: int

    changed: str
    """Differs when the content does, as far as the place tells without reading it."""


class Root(Protocol):
    """A place with one folder a class."""

    def folders(self) -> list[str]:
        """Names of the folders directly below it, sorted."""

    def entries(self, folder: str) -> Iterator[Entry]:
        """Every file below one of them, at any depth."""

    def read(self, path: str, max_bytes: int) -> bytes:
        """The content of a file, or its first `max_bytes` + 1 bytes if it is longer.

        Raises:
            OSError: it cannot be read.
        """


Opener = Callable[[str], Root]
"""Opens a root by its name; processes that only know the name open it again."""


@functools.lru_cache(maxsize=16)
def open_root(name: str) -> Root:
    """A folder or a zip archive of this machine; `pictures.zip/inner` is a folder in an archive.

    Raises:
        DataError: there is neither.
    """
    place = Path(name)
    if place.is_dir():
        return Folder(place)
    for file in (place, *place.parents):
        if file.is_file() and zipfile.is_zipfile(file):
            return Archive(file, place.relative_to(file).as_posix())
    what = "is neither a folder nor a zip archive" if place.exists() else "does not exist"
    raise DataError(
        f"{name} {what}. Wanted is a folder, a zip archive or a URI (s3://...) with one folder a "
        f"class in it."
    )


def below(name: str, folder: str) -> str:
    """The name of the root that is a folder of another one."""
    place, mark, options = name.partition("?") if "://" in name else (name, "", "")
    return f"{place.rstrip('/')}/{folder}{mark}{options}"


class Folder:
    """A folder of this machine. Links to folders are not followed: they may go in circles."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def folders(self) -> list[str]:
        """Names of the folders directly below it, sorted."""
        try:
            return sorted(entry.name for entry in self.place.iterdir() if entry.is_dir())
        except OSError as error:
            raise _unreadable(error) from error

    def entries(self, folder: str) -> Iterator[Entry]:
        """Every file below one of them, at any depth."""

        def fail(error: OSError) -> None:
            raise _unreadable(error) from error

        for directory, _, names in os.walk(self.place / folder, onerror=fail):
            for name in names:
                file = Path(directory) / name
                try:
                    found = file.stat()
                    size, changed = found.st_size, str(found.st_mtime_ns)
                except OSError:  # A link to nowhere or to itself: the scan says so.
                    size, changed = 0, ""
                yield Entry(file.relative_to(self.place).as_posix(), size, changed)

    def read(self, path: str, max_bytes: int) -> bytes:
        """The content of a file, or its first `max_bytes` + 1 bytes if it is longer."""
        # A pipe or a device might never end: opened without waiting, and refused.
        with os.fdopen(os.open(self.place / path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise OSError(0, "it is not a regular file", path)
            return stream.read(max_bytes + 1)


def _unreadable(error: OSError) -> DataError:
    return DataError(
        f"{error.filename} cannot be read: {error.strerror}. Its pictures would be missing: give "
        f"yourself the right to read it, or take it out of the raw folder."
    )


class Archive:
    """A zip archive of class folders, which is never unpacked."""

    def __init__(self, place: Path, inner: str) -> None:
        try:
            self._zip = zipfile.ZipFile(place)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{place} cannot be read as a zip archive: {error}.") from error
        start = "" if inner == "." else f"{inner}/"
        self._files = {
            item.filename.removeprefix(start): item
            for item in self._zip.infolist()
            if item.filename.startswith(start)
            and not item.is_dir()
            and not item.filename.startswith(f"{_RESOURCES}/")
        }

    def folders(self) -> list[str]:
        """Names of the folders directly below it, sorted."""
        return sorted({path.split("/")[0] for path in self._files if "/" in path})

    def entries(self, folder: str) -> Iterator[Entry]:
        """Every file below one of them, at any depth."""
        for path, item in self._files.items():
            if path.startswith(f"{folder}/"):
                yield Entry(path, item.file_size, f"{item.CRC:08x}")

    def read(self, path: str, max_bytes: int) -> bytes:
        """The content of a file, or its first `max_bytes` + 1 bytes if it is longer."""
        try:
            with self._zip.open(self._files[path]) as stream:
                return stream.read(max_bytes + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
            raise OSError(0, f"damaged in the archive ({error})", path) from error
        except (RuntimeError, NotImplementedError) as error:  # Encrypted, or packed unusually.
            raise OSError(0, str(error), path) from error
