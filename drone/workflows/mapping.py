"""Maps the files of a data set: in this process where they are few, on Ray where they are many."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from drone.cluster import connection
from drone.data.prepare.plan import Mapper, Row

_MAX_S_HERE = 10.0
"""Seconds of work that this process does by itself: Ray takes about as long to start."""

_MIN_SAMPLE_S = 0.5
"""Seconds of work that say how long the rest will take."""


@contextlib.contextmanager
def mapper(max_s_here: float = _MAX_S_HERE) -> Iterator[Mapper]:
    """Yields a mapper with a progress bar, for all that a job has to map.

    It starts with the first rows at once. If the rest would take too long, it goes to Ray.

    Args:
        max_s_here: Seconds of the rest from which Ray is started.
    """
    with contextlib.ExitStack() as stack:
        yield _Mapper(stack, max_s_here)


class _Mapper:
    """Maps rows in this process first, and on Ray if the rest would take too long."""

    def __init__(self, stack: contextlib.ExitStack, max_s_here: float) -> None:
        self._stack = stack
        self._max_s_here = max_s_here
        self._connected = False

    def __call__(
        self, function: Callable[[Row], Row], rows: Sequence[Row], label: str
    ) -> list[Row]:
        if not rows:
            return []
        with _progress_bar() as progress:
            task = progress.add_task(label, total=len(rows))
            advance = functools.partial(progress.advance, task)
            results = [] if self._connected else self._map_here(function, rows, advance)
            rest = rows[len(results) :]
            return [*results, *self._map_on_ray(function, rest, advance)] if rest else results

    def _map_here(
        self, function: Callable[[Row], Row], rows: Sequence[Row], advance: Callable[[int], None]
    ) -> list[Row]:
        """Returns the results of all rows, or of the first few if the rest would take too long."""
        results: list[Row] = []
        began = time.monotonic()
        for row in rows:
            results.append(function(row))
            advance(1)
            elapsed_s = time.monotonic() - began
            rest_s = elapsed_s / len(results) * (len(rows) - len(results))
            if elapsed_s > _MIN_SAMPLE_S and rest_s > self._max_s_here:
                break
        return results

    def _map_on_ray(
        self, function: Callable[[Row], Row], rows: Sequence[Row], advance: Callable[[int], None]
    ) -> list[Row]:
        # Ray Data takes seconds to import, which few files do not need.
        from drone.cluster.data import map_rows

        if not self._connected:
            self._stack.enter_context(connection.connected())
            self._connected = True
        return map_rows(function, rows, advance)


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
