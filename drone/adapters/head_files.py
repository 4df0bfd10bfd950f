"""Files of the machine that a job runs on, for workers on machines that do not share its disk.

A place `head:///folder` is that folder. Its bytes travel through an actor beside the job, so that a
cluster needs neither a shared file system nor another server. Works wherever Ray is connected, and
ends with the job.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import ray
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drone.adapters.storage import HEAD

_ACTOR = "drone-head-files"
_BLOCK = 8 * 2**20
"""Bytes in a message."""


class _Files:
    """What the actor does, on paths of its machine."""

    def info(self, path: str) -> dict[str, Any]:
        found = Path(path).stat()
        is_folder = Path(path).is_dir()
        return {
            "name": path,
            "size": 0 if is_folder else found.st_size,
            "type": "directory" if is_folder else "file",
            "mtime": found.st_mtime,
        }

    def ls(self, path: str) -> list[dict[str, Any]]:
        if not Path(path).is_dir():
            return [self.info(path)]
        return [self.info(entry.path) for entry in os.scandir(path)]

    def make_folder(self, path: str, parents: bool, exist_ok: bool) -> None:
        Path(path).mkdir(parents=parents, exist_ok=exist_ok)

    def remove(self, path: str, recursive: bool) -> None:
        if not Path(path).is_dir():
            Path(path).unlink()
        elif recursive:
            shutil.rmtree(path)
        else:
            Path(path).rmdir()

    def move(self, source: str, target: str) -> None:
        shutil.move(source, target)

    def copy(self, source: str, target: str) -> None:
        shutil.copyfile(source, target)

    def read(self, path: str, start: int, end: int) -> bytes:
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def append(self, path: str, content: bytes) -> None:
        with Path(path).open("ab") as file:
            file.write(content)


def offer() -> None:
    """Starts the actor on this machine, unless it is there."""
    job = _namespace()
    if job in _offered:
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": _ACTOR, "namespace": job, "num_cpus": 0, "max_concurrency": 8}
    _offered[job] = ray.remote(_Files).options(scheduling_strategy=here, **options).remote()


_offered: dict[str, ActorHandle] = {}
"""By job; an actor ends when the handle that made it goes."""


def _namespace() -> str:
    """The same in all processes of a job, and in no other job."""
    return f"drone-{ray.get_runtime_context().get_job_id()}"


class HeadFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """fsspec's view of it."""

    protocol = HEAD
    cachable = False

    def _ask(self, method: str, *arguments: Any) -> Any:
        """What the actor answers.

        Raises:
            OSError: it says so, or it cannot be reached.
        """
        try:
            actor = ray.get_actor(_ACTOR, _namespace())
            return ray.get(getattr(actor, method).remote(*arguments))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, OSError) else error from None
        except (RayActorError, ValueError) as error:
            raise OSError(f"the machine that the job runs on cannot be reached: {error}") from error

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size, type and time of change."""
        found: dict[str, Any] = self._ask("info", self._strip_protocol(path))
        return found

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What is in a folder."""
        found = self._ask("ls", self._strip_protocol(path))
        return found if detail else [entry["name"] for entry in found]

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Makes a folder."""
        self._ask("make_folder", path, create_parents, False)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder and those above it."""
        self._ask("make_folder", path, True, exist_ok)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Deletes a file or folder."""
        self._ask("remove", path, recursive)

    def rmdir(self, path: str) -> None:
        """Deletes an empty folder."""
        self._ask("remove", path, False)

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        """Renames."""
        self._ask("move", path1, path2)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copies a file on that machine."""
        self._ask("copy", path1, path2)

    def modified(self, path: str) -> float:
        """Seconds since 1970."""
        return float(self.info(path)["mtime"])

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "_HeadFile":
        return _HeadFile(self, path, mode, block_size=_BLOCK, cache_type="readahead")


class _HeadFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file that is read or written in blocks; what is written appears when it is whole."""

    fs: HeadFileSystem

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs._ask("read", self.path, start, end))

    def _initiate_upload(self) -> None:
        self._arriving = f"{self.path}.arriving-{uuid.uuid4().hex[:8]}"

    def _upload_chunk(self, final: bool = False) -> bool:
        self.fs._ask("append", self._arriving, self.buffer.getvalue())
        if final:
            self.fs._ask("move", self._arriving, self.path)
        return True
