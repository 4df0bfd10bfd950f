"""The store of served images, in a folder or object storage; `serving.keeping` fills it."""

import contextlib
import datetime
import functools
import json
import re
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from drone.errors import DataError
from drone.files import write_whole
from drone.serving.background_keeper import is_day
from drone.serving.keeping import StoredFile
from drone.storage.filesystem import (
    absolute,
    check_scheme,
    is_object_storage,
    local_path,
    open_filesystem,
    probe,
)

_THREADS = 16
"""Files that are read or deleted at the same time: an object store takes some 20 ms for each."""

_FILE_NAME = re.compile(r"[0-9a-f]{64}\.[a-z]+(\.[0-9a-f]+\.new)?")
"""Names of the store's files; those that end in .new are being written, or a kill has left them."""


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
        """Takes the location, where nothing need be yet; nothing is read or sent.

        Raises:
            ConfigError: There is no file system for such a URI.
        """
        self.location = absolute(location).rstrip("/")
        check_scheme(self.location)

    @functools.cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        """The file system and the path within it; S3 is asked for the bucket's region."""
        return open_filesystem(self.location)

    def check_writable(self) -> None:
        """Writes and deletes a file.

        Raises:
            OSError: The store cannot be written.
        """
        probe(self.location, 1)

    def files(self) -> list[StoredFile]:
        """Returns the files of the store, and none that lie there for other reasons."""
        _, root = self._opened
        days = [info.path for info in self._listed(root) if is_day(info.base_name)]
        return [
            StoredFile(info.path.removeprefix(f"{root}/"), info.size or 0)
            for day in days
            for info in self._listed(day)
            if info.type == fs.FileType.File and _FILE_NAME.fullmatch(info.base_name)
        ]

    def _listed(self, folder: str) -> list[fs.FileInfo]:
        """Returns what is in a folder; nothing if there is none."""
        filesystem, _ = self._opened
        return list(filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)))

    def read(self, path: str) -> bytes:
        """Returns the content of a file.

        Raises:
            OSError: It cannot be read.
        """
        filesystem, root = self._opened
        with filesystem.open_input_stream(f"{root}/{path}") as stream:
            return bytes(stream.read())

    def write(self, path: str, content: bytes) -> None:
        """Writes a file, as a whole or not at all; its folder is created."""
        if is_object_storage(self.location):
            # An object needs no folder, and appears when it is complete.
            filesystem, root = self._opened
            with filesystem.open_output_stream(f"{root}/{path}") as stream:
                stream.write(content)
            return
        target = local_path(self.location) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: another server may write the same image at the same moment.
        write_whole(target, content, target.with_name(f"{target.name}.{uuid.uuid4().hex}.new"))

    def delete(self, paths: Sequence[str]) -> None:
        """Deletes files, and days that are left empty; a file that is gone is no error."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._delete_file, paths))
        filesystem, root = self._opened
        for day in {path.partition("/")[0] for path in paths}:
            if not self._listed(f"{root}/{day}"):
                with contextlib.suppress(FileNotFoundError):
                    filesystem.delete_dir(f"{root}/{day}")

    def _delete_file(self, path: str) -> None:
        filesystem, root = self._opened
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{root}/{path}")

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
            if path not in records and f"{path.rpartition('.')[0]}.json" in records
        ]
        with ThreadPoolExecutor(_THREADS) as pool:
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
            time = datetime.datetime.fromisoformat(record["time"]).astimezone(datetime.UTC)
            return StoredImage(
                path=path,
                sha256=str(record["sha256"]),
                md5=str(record["md5"]),
                time=time.isoformat(timespec="seconds"),
                reasons=tuple(map(str, record["reasons"])),
                label=str(record["answer"]["label"]),
                model=" ".join(filter(None, (model["name"], model["version"]))) or "unnamed",
            )
        # What is damaged or was made by hand; the last is JSON of many levels.
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
