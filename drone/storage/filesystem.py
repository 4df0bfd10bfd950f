"""Files at any location: a local path, object storage (s3://...) or the job's machine (head://)."""

import contextlib
import uuid
from pathlib import Path

from pyarrow import fs

from drone.errors import ConfigError
from drone.storage.head_files import SCHEME, HeadFileSystem

_HEAD = f"{SCHEME}://"

_SCHEMES = (SCHEME, "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
"""What a URI may begin with: pyarrow's file systems, and the job's machine."""


def absolute(location: str) -> str:
    """Returns an absolute path, which is valid in every process; a URI is returned unchanged.

    Raises:
        ConfigError: It starts with the home folder of a user that does not exist.
    """
    if "://" in location:
        return location
    try:
        return str(Path(location).expanduser().resolve())
    except RuntimeError as error:
        raise ConfigError(f"{location} cannot be found: {error} Write ./~ for a name.") from error


def check_scheme(location: str) -> None:
    """Fails for a URI that no file system is for; nothing is read or sent.

    Raises:
        ConfigError: There is none.
    """
    scheme, separator, _ = location.partition("://")
    if separator and scheme not in _SCHEMES:
        raise _cannot_open(location, f"nothing reads {scheme}://")


def head_uri(folder: str) -> str:
    """Returns the URI under which other machines reach a folder of the job's machine."""
    return f"{_HEAD}{folder}"


def local_path(location: str) -> Path:
    """Returns the path of a local folder, or of a `head://` URI on the job's machine."""
    return Path(location.removeprefix(_HEAD))


def is_object_storage(location: str) -> bool:
    """Whether the location is in object storage, and not on the disk of a machine."""
    return "://" in location and not location.startswith(_HEAD)


def resolve_writable(location: str) -> str:
    """Returns an absolute path or a URI, after checking that it can be written.

    Raises:
        ConfigError: There is no file system for such a URI, or the location cannot be written.
    """
    location = absolute(location)
    try:
        probe(location, 1)
    except OSError as error:
        raise ConfigError(
            f"The storage {location} cannot be written: {error}. Choose another --storage."
        ) from error
    return location


def probe(location: str, num_bytes: int) -> None:
    """Writes and deletes a file of a size.

    Raises:
        OSError: The location cannot be written, or has no space left.
    """
    filesystem, path = open_filesystem(location)
    # A new name each time: several workers may probe the same folder at once.
    file = f"{path}/.probe-{uuid.uuid4().hex}"
    filesystem.create_dir(path, recursive=True)
    try:
        with filesystem.open_output_stream(file) as stream:
            stream.write(bytes(num_bytes))
    finally:
        # A storage that is full or gone may refuse this too; the first error is the one to report.
        with contextlib.suppress(OSError):
            filesystem.delete_file(file)


def for_ray(location: str) -> tuple[str, fs.FileSystem | None]:
    """Returns a location as Ray's run configs take it: path or URI, and a file system if needed."""
    if location.startswith(_HEAD):
        # Ray knows no scheme of ours; with a file system it takes a path within that.
        filesystem, path = open_filesystem(location)
        return path, filesystem
    return location, None


def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a location, and the path within it.

    Raises:
        ConfigError: There is no file system for such a URI.
    """
    if location.startswith(_HEAD):
        return fs.PyFileSystem(fs.FSSpecHandler(HeadFileSystem())), location.removeprefix(_HEAD)
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (ValueError, OSError) as error:
        raise _cannot_open(location, error) from error
    return filesystem, path


def _cannot_open(location: str, reason: object) -> ConfigError:
    return ConfigError(
        f"Cannot open the storage {location}: {reason}. Name a folder, or a URI such as "
        f"s3://bucket/folder."
    )


def copy_here(location: str, target: Path) -> None:
    """Copies a folder into a local one, which is created.

    Raises:
        OSError: The folder cannot be read, or the local one cannot be written.
    """
    filesystem, path = open_filesystem(location)
    target.mkdir(parents=True, exist_ok=True)
    fs.copy_files(
        path,
        str(target),
        source_filesystem=filesystem,
        destination_filesystem=fs.LocalFileSystem(),
    )


def read_text(location: str) -> str:
    """Reads a small text file.

    Raises:
        OSError: The file cannot be read.
    """
    filesystem, path = open_filesystem(location)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read()).decode("utf-8")


def write_text(location: str, text: str) -> None:
    """Writes a small text file; its folder is created.

    Raises:
        OSError: The file cannot be written.
    """
    filesystem, path = open_filesystem(location)
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(path) as stream:
        stream.write(text.encode("utf-8"))


def delete_file(location: str) -> None:
    """Deletes a file."""
    filesystem, path = open_filesystem(location)
    filesystem.delete_file(path)
