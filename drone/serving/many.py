"""Predictions of many image files: in threads, in order, in bounded memory."""

import collections
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from drone.errors import ImageError

if TYPE_CHECKING:  # It imports this module.
    from drone.serving.predictor import Prediction, Predictor

UNREADABLE = "unreadable"
"""Reason of a file that the operating system does not let us read."""

_AHEAD = 4
"""Images in work or done for each thread, so that none is idle while results are consumed."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FileResult:
    """The prediction of one file, or why there is none."""

    path: Path

    prediction: "Prediction | None"

    reason: str = ""
    """One of `ImageError.REASONS`, or `UNREADABLE`; empty if there is a prediction."""

    detail: str = ""
    """The reason in a sentence."""


def predict_files(
    predictor: "Predictor", files: Iterable[str | Path], threads: int | None
) -> Iterator[FileResult]:
    """Yields the result of each file; see `Predictor.predict_many`."""

    def predict(file: str | Path) -> FileResult:
        path = Path(file)
        # One image per inference call: in batches of 8 or 32, MobileNet_V2 takes 25 to 40 % more
        # processor time for each, since its activations no longer fit the cache.
        try:
            return FileResult(path, predictor.predict(path.read_bytes()))
        except ImageError as error:
            return FileResult(path, None, error.reason, str(error))
        except OSError as error:
            return FileResult(path, None, UNREADABLE, cannot_be_read(error))

    return map_ahead(predict, files, threads)


def cannot_be_read(error: OSError) -> str:
    """Returns why a file is unreadable, in a sentence."""
    return f"Cannot be read: {error.strerror or error}."


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Generator[Result, None, None]:
    """Yields `function(item)` for each item, in order, while threads work on the next ones.

    Args:
        function: Called in several threads at once.
        items: What it is applied to; taken only as fast as results are consumed.
        threads: Number of threads; None for one per core.
    """
    threads = threads or os.cpu_count() or 1
    executor = ThreadPoolExecutor(threads)
    pending: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= threads * _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # After Ctrl-C, or where the consumer has stopped, what has not begun is not worth its time.
        executor.shutdown(wait=True, cancel_futures=True)
