"""Raw images wherever they are: `drone.data.prepare.roots` and object storage."""

import functools
from collections.abc import Iterator

from pyarrow import fs

from drone.data.prepare import roots
from drone.errors import DataError


# A process reads many files of few roots, and opening an archive reads its whole directory.
@functools.lru_cache(maxsize=16)
def open_root(name: str) -> roots.Root:
    """Opens a folder, a zip archive, or a URI such as s3://bucket/raw; a `roots.Opener`.

    Raises:
        DataError: There is no such folder or archive, or it cannot be reached.
    """
    if "://" not in name:
        return roots.open_root(name)
    filesystem, path, file_type = _open_uri(name)
    if file_type != fs.FileType.Directory:
        raise DataError(f"There is no folder {name}. Name one that has a subfolder per class.")
    return ObjectStore(filesystem, path)


def is_file(uri: str) -> bool:
    """Whether a URI names one file, and not a folder.

    Raises:
        DataError: It cannot be reached.
    """
    return bool(_open_uri(uri)[2] == fs.FileType.File)


def _open_uri(uri: str) -> tuple[fs.FileSystem, str, fs.FileType]:
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path, filesystem.get_file_info(path).type
    except (OSError, ValueError) as error:
        raise DataError(
            f"{uri} cannot be opened: {error}. Name a folder, a zip archive or a URI such as "
            f"s3://bucket/raw."
        ) from error


class ObjectStore:
    """A folder of object storage."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._filesystem = filesystem
        self._path = path.rstrip("/")

    def folders(self) -> list[str]:
        """Returns the names of the folders directly below it, sorted."""
        infos = self._list(self._path, recursive=False)
        return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)

    def loose_files(self) -> list[roots.Entry]:
        """Returns the files directly below it."""
        return self._entries(self._path, recursive=False)

    def entries(self, folder: str) -> Iterator[roots.Entry]:
        """Yields every file below one of the folders, at any depth; of all if it is empty."""
        yield from self._entries(f"{self._path}/{folder}".rstrip("/"), recursive=True)

    def read(self, path: str, max_bytes: int) -> bytes:
        """Returns the content of a file, or its first `max_bytes` + 1 bytes if it is longer."""
        with self._filesystem.open_input_stream(f"{self._path}/{path}") as stream:
            return bytes(stream.read(max_bytes + 1))

    def _entries(self, path: str, *, recursive: bool) -> list[roots.Entry]:
        # Objects are replaced whole, so their time tells a change without reading them.
        return [
            roots.Entry(
                info.path.removeprefix(f"{self._path}/"), info.size, str(info.mtime_ns or "")
            )
            for info in self._list(path, recursive=recursive)
            if info.type == fs.FileType.File
        ]

    def _list(self, path: str, *, recursive: bool) -> list[fs.FileInfo]:
        try:
            infos: list[fs.FileInfo] = self._filesystem.get_file_info(
                fs.FileSelector(path, recursive=recursive)
            )
        except OSError as error:
            raise DataError(f"{path} cannot be listed: {error}") from error
        return infos
