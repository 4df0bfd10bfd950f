"""Predicts images on every processor of Ray: of this machine, or of a cluster."""

import collections
import functools
import itertools
import socket
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path

import ray
from pyarrow import fs

from drone.cluster import (
    connection,
    head_files,  # noqa: F401  Makes head:// reachable in this process.
)
from drone.data.prepare.roots import Root, on_disk
from drone.errors import DataError, DroneError
from drone.inference.items import Item
from drone.inference.prediction import Views, is_clip_item, predict_rows
from drone.inference.rows import Row
from drone.serving.predictor import Predictor
from drone.storage.filesystem import open_filesystem
from drone.storage.raw_roots import ObjectStore, open_root

_TASK_SIZE = 64
"""Images of one task: half a second of work, beside which starting the task costs little."""

_AHEAD = 4
"""Tasks in work or done for each processor, so that none is idle while rows are written."""

_REMOTE_THREADS = 8
"""Threads of a task on object storage, where reading is mostly waiting."""

_predictors: dict[str, Predictor] = {}
"""The model of this process, by its checksum."""


def predict_on_ray(
    predictor: Predictor, items: Iterable[Item], views: Views
) -> Generator[Row, None, None]:
    """Yields the rows of each item, in their order, from tasks on all processors of Ray.

    A task whose machine is lost runs again elsewhere. What the user can fix (a DroneError) is
    raised here as it was raised there. Clips are predicted on this machine.
    """
    for are_clips, group in itertools.groupby(items, is_clip_item):
        if are_clips:
            yield from predict_rows(predictor, group, open_root, views=views)
        else:
            yield from _predict_images(predictor, group, views)


def _predict_images(
    predictor: Predictor, items: Iterator[Item], views: Views
) -> Generator[Row, None, None]:
    task = ray.remote(_predict_chunk)
    content = ray.put(predictor.content)
    tasks: collections.deque[ray.ObjectRef] = collections.deque()
    try:
        while True:
            # Asked each time: a cluster may grow.
            limit = _AHEAD * int(ray.cluster_resources().get("CPU", 1))
            while len(tasks) < limit and (chunk := list(itertools.islice(items, _TASK_SIZE))):
                folders = {item.root: _readable(item.root) for item in chunk}
                tasks.append(task.remote(content, predictor.checksum, chunk, views, folders))
            if not tasks:
                return
            rows = ray.get(tasks.popleft())
            if isinstance(rows, DroneError):
                raise rows
            yield from rows
    finally:
        for waiting in tasks:
            ray.cancel(waiting)


def _readable(root: str) -> str:
    """Returns where the other machines can read a root, if it is a folder."""
    return root if "://" in root else connection.readable_uri(str(on_disk(Path(root))))


def _predict_chunk(
    content: bytes, checksum: str, chunk: list[Item], views: Views, folders: Mapping[str, str]
) -> list[Row] | DroneError:
    try:
        predictor = _predictor(content, checksum)
        # One processor is what the task has. Waiting for object storage takes none.
        is_remote = any("://" in item.root for item in chunk)
        threads = _REMOTE_THREADS if is_remote else 1
        opener = functools.partial(_open, folders)
        return list(predict_rows(predictor, chunk, opener, threads, views))
    except DroneError as error:
        # As a value: what a task raises arrives wrapped, and with a traceback in the log.
        return error


def _open(folders: Mapping[str, str], root: str) -> Root:
    """Opens a root; a folder that this machine lacks is read from the one of the job."""
    if "://" in root or on_disk(Path(root)).exists():
        return open_root(root)
    filesystem, path = open_filesystem(folders[root])
    if filesystem.get_file_info(path).type != fs.FileType.Directory:  # Such as an archive.
        raise DataError(
            f"{root} is not on the machine {socket.gethostname()}, which shares the work. Unpack "
            f"it into a folder, or name a URI such as s3://bucket/images."
        )
    return ObjectStore(filesystem, path)


def _predictor(content: bytes, checksum: str) -> Predictor:
    """Returns the model, loaded once in each process."""
    # By checksum: a cache by content would read all of it for every task.
    if checksum not in _predictors:
        _predictors.clear()
        model = Path(f"model {checksum[:12]}")
        _predictors[checksum] = Predictor(model, threads=1, max_concurrency=1, content=content)
    return _predictors[checksum]
