"""Predicts images on every processor of Ray: of this machine, or of a cluster."""

import collections
import itertools
import socket
from collections.abc import Generator, Iterable
from pathlib import Path

import ray

from drone.data.prepare.roots import on_disk
from drone.errors import DataError, DroneError
from drone.inference.items import Item
from drone.inference.prediction import Views, predict_rows
from drone.inference.rows import Row
from drone.serving.predictor import Predictor
from drone.storage.raw_roots import open_root

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
    raised here as it was raised there.
    """
    task = ray.remote(_predict_chunk)
    content = ray.put(predictor.content)
    tasks: collections.deque[ray.ObjectRef] = collections.deque()
    iterator = iter(items)
    try:
        while True:
            # Asked each time: a cluster may grow.
            limit = _AHEAD * int(ray.cluster_resources().get("CPU", 1))
            while len(tasks) < limit and (chunk := list(itertools.islice(iterator, _TASK_SIZE))):
                tasks.append(task.remote(content, predictor.checksum, chunk, views))
            if not tasks:
                return
            rows = ray.get(tasks.popleft())
            if isinstance(rows, DroneError):
                raise rows
            yield from rows
    finally:
        for waiting in tasks:
            ray.cancel(waiting)


def _predict_chunk(
    content: bytes, checksum: str, chunk: list[Item], views: Views
) -> list[Row] | DroneError:
    try:
        for root in {item.root for item in chunk}:
            _check_reachable(root)
        # One processor is what the task has. Waiting for object storage takes none.
        is_remote = any("://" in item.root for item in chunk)
        threads = _REMOTE_THREADS if is_remote else 1
        predictor = _predictor(content, checksum)
        return list(predict_rows(predictor, chunk, open_root, threads, views))
    except DroneError as error:
        # As a value: what a task raises arrives wrapped, and with a traceback in the log.
        return error


def _predictor(content: bytes, checksum: str) -> Predictor:
    """Returns the model, loaded once in each process."""
    # By checksum: a cache by content would read all of it for every task.
    if checksum not in _predictors:
        _predictors.clear()
        model = Path(f"model {checksum[:12]}")
        _predictors[checksum] = Predictor(model, threads=1, max_concurrency=1, content=content)
    return _predictors[checksum]


def _check_reachable(root: str) -> None:
    if "://" not in root and not on_disk(Path(root)).exists():
        raise DataError(
            f"{root} is not on the machine {socket.gethostname()}, which shares the work. Name a "
            f"folder that all machines of the cluster have, or a URI such as s3://bucket/images."
        )
