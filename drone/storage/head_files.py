"""The `head://` file system: files of the machine that a job runs on, read and written from others.

`head:///folder` is that folder. This module gives fsspec's view of it; the bytes travel through
whatever transport the process has registered. On a cluster that is a Ray actor beside the job
(`drone.cluster.head_files`), so that a cluster needs neither a shared file system nor another
server.
"""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

SCHEME = "head"
"""URI scheme of folders on the machine that the job runs on."""

_BLOCK_BYTES = 8 * 2**20
"""Size of one message."""

Transport = Callable[..., Any]
"""Calls a method of `HeadFiles` on the job's machine: method name, then its arguments.

Raises:
    OSError: the method raised it; a ConnectionError: the machine cannot be reached.
"""

# Not an attribute: file systems are pickled into workers, and each process has its own way.
_transport: Transport | None = None


def register_transport(transport: Transport) -> None:
    """Sets how this process reaches the job's machine."""
    global _transport
    _transport = transport


def _call(method: str, *arguments: Any) -> Any:
    if _transport is None:
        raise OSError(f"{SCHEME}:// is only reachable while Ray is connected")
    return _transport(method, *arguments)


class HeadFiles:
    """File operations that the job's machine performs for other machines."""

    def info(self, path: str) -> dict[str, Any]:
        """Returns name, size in bytes, type and modification time of a file or folder."""
        status = Path(path).stat()
        is_folder = Path(path).is_dir()
        return {
            "name": path,
            "size": 0 if is_folder else status.st_size,
            "type": "directory" if is_folder else "file",
            "mtime": status.st_mtime,
        }

    def ls(self, path: str) -> list[dict[str, Any]]:
        """Returns `info` of each entry of a folder, or of the file itself."""
        # As fsspec expects: a file lists itself.
        if not Path(path).is_dir():
            return [self.info(path)]
        return [self.info(entry.path) for entry in os.scandir(path)]

    def make_folder(self, path: str, parents: bool, exist_ok: bool) -> None:
        """Creates a folder."""
        Path(path).mkdir(parents=parents, exist_ok=exist_ok)

    def remove(self, path: str, recursive: bool) -> None:
        """Deletes a file, an empty folder or, if `recursive`, a folder with its content."""
        if not Path(path).is_dir():
            Path(path).unlink()
        elif recursive:
            shutil.rmtree(path)
        else:
            Path(path).rmdir()

    def move(self, source: str, target: str) -> None:
        """Renames a file or folder."""
        shutil.move(source, target)

    def copy(self, source: str, target: str) -> None:
        """Copies a file."""
        shutil.copyfile(source, target)

    def read(self, path: str, start: int, end: int) -> bytes:
        """Returns bytes `start` to `end` of a file."""
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def append(self, path: str, content: bytes) -> None:
        """Adds bytes at the end of a file, which is created if missing."""
        # A file has one writer, which sends its blocks in order.
        with Path(path).open("ab") as file:
            file.write(content)


class HeadFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """fsspec's view of `HeadFiles`."""

    protocol = SCHEME
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Returns name, size, type and modification time."""
        info: dict[str, Any] = _call("info", self._strip_protocol(path))
        return info

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Returns the entries of a folder."""
        entries = _call("ls", self._strip_protocol(path))
        return entries if detail else [entry["name"] for entry in entries]

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Creates a folder."""
        _call("make_folder", path, create_parents, False)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Creates a folder and its parents."""
        _call("make_folder", path, True, exist_ok)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Deletes a file or folder."""
        _call("remove", path, recursive)

    def rmdir(self, path: str) -> None:
        """Deletes an empty folder."""
        _call("remove", path, False)

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        """Renames a file or folder."""
        _call("move", path1, path2)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copies a file without moving its bytes between machines."""
        _call("copy", path1, path2)

    def modified(self, path: str) -> float:
        """Returns the modification time in seconds since 1970."""
        return float(self.info(path)["mtime"])

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "_HeadFile":
        return _HeadFile(self, path, mode, block_size=_BLOCK_BYTES, cache_type="readahead")


class _HeadFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file that is read or written in blocks; a written file appears when it is complete."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(_call("read", self.path, start, end))

    def _initiate_upload(self) -> None:
        # Another name until it is complete: no reader takes a partial checkpoint for a whole one.
        self._partial_path = f"{self.path}.arriving-{uuid.uuid4().hex[:8]}"

    def _upload_chunk(self, final: bool = False) -> bool:
        _call("append", self._partial_path, self.buffer.getvalue())
        if final:
            _call("move", self._partial_path, self.path)
        return True
