"""The store of served images, in a folder or object storage; `serving.keeping` fills it."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from drone.errors import DataError
from drone.serving.background_keeper import is_day
from drone.serving.keeping import StoredFile
from drone.storage.filesystem import absolute, is_object_storage, open_filesystem, probe

_READERS = 16
"""Records that are read at the same time: an object store takes some 20 ms for each."""


@dataclass(frozen=True)
class StoredImage:
    """An image of the store with its record."""

    path: str
    """Path below the store: DAY/SHA256.EXTENSION."""

    sha256: str
    md5: str
    time: str
    """When it was served, ISO 8601 in UTC."""

    reasons: tuple[str, ...]
    """Why it was kept: of `keeping.UNSURE`, `REJECTED` and `SAMPLED`."""

    label: str
    """Label of the answer at that time."""

    model: str
    """Name and version of the model that gave it."""

    @property
    def day(self) -> str:
        """Day on which it was served, in UTC."""
        return self.time[:10]


class KeptImages:
    """The files of a store; a `keeping.ImageStore`."""

    def __init__(self, location: str) -> None:
        """Opens a store, which need not exist yet.

        Raises:
            ConfigError: There is no file system for such a URI.
        """
        self.location = absolute(location).rstrip("/")
        self._filesystem, self._path = open_filesystem(self.location)

    def check_writable(self) -> None:
        """Writes and deletes a file.

        Raises:
            OSError: The store cannot be written.
        """
        probe(self.location, 1)

    def files(self) -> list[StoredFile]:
        """Returns all files of the store; none if it does not exist."""
        selector = fs.FileSelector(self._path, recursive=True, allow_not_found=True)
        return [
            StoredFile(info.path.removeprefix(f"{self._path}/"), info.size or 0)
            for info in self._filesystem.get_file_info(selector)
            if info.type == fs.FileType.File
        ]

    def read(self, path: str) -> bytes:
        """Returns the content of a file.

        Raises:
            OSError: It cannot be read.
        """
        with self._filesystem.open_input_stream(f"{self._path}/{path}") as stream:
            return bytes(stream.read())

    def write(self, path: str, content: bytes) -> None:
        """Writes a file, as a whole or not at all; its folder is created."""
        target = f"{self._path}/{path}"
        # An object needs no folder, appears when it is complete, and cannot be renamed.
        in_one_step = is_object_storage(self.location)
        written = target if in_one_step else f"{target}.new"
        if not in_one_step:
            self._filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(written) as stream:
            stream.write(content)
        if not in_one_step:
            self._filesystem.move(written, target)

    def delete(self, path: str) -> None:
        """Deletes a file, or a folder with all files in it."""
        target = f"{self._path}/{path}"
        if self._filesystem.get_file_info(target).type == fs.FileType.Directory:
            self._filesystem.delete_dir(target)
        else:
            self._filesystem.delete_file(target)

    def images(self) -> list[StoredImage]:
        """Returns the images of the store, oldest first, each content once.

        Images without a readable record are left out: they were being written, or deleted.

        Raises:
            DataError: The store cannot be read, or there is no image in it.
        """
        try:
            paths = [file.path for file in self.files()]
        except OSError as error:
            raise DataError(f"{self.location} cannot be read: {error}.") from error
        records = {path for path in paths if path.endswith(".json")}
        image_paths = [
            path
            for path in sorted(paths)
            if is_day(path.partition("/")[0])
            and f"{path.rpartition('.')[0]}.json" in records - {path}
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(self._read_record, image_paths))
        by_hash: dict[str, StoredImage] = {}
        for image in sorted((one for one in found if one), key=lambda one: one.time):
            by_hash.setdefault(image.sha256, image)
        if not by_hash:
            raise DataError(
                f"{self.location} holds no served images. Name the folder or URI that was --keep "
                f"of python ray_jobs/serve.py."
            )
        return list(by_hash.values())

    def _read_record(self, path: str) -> StoredImage | None:
        try:
            record: dict[str, Any] = json.loads(self.read(f"{path.rpartition('.')[0]}.json"))
            model = record["model"]
            return StoredImage(
                path=path,
                sha256=str(record["sha256"]),
                md5=str(record["md5"]),
                time=str(record["time"]),
                reasons=tuple(map(str, record["reasons"])),
                label=str(record["answer"]["label"]),
                model=" ".join(filter(None, (model["name"], model["version"]))) or "unnamed",
            )
        except (OSError, ValueError, LookupError, TypeError):
            return None
