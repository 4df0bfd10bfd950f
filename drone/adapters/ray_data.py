"""Maps files through Ray Data: the scan and the packing of a data set, over all processors."""

import logging
import pickle
from collections.abc import Callable, Sequence

import ray
import ray.data
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from drone.data.prepare import Row
from drone.errors import DroneError

_PIECE, _TASK = 128, 1024
"""Most rows that travel as one value, and in one task. A row of Ray's for each file would cost more
than a look at it, and so would a task for few; yet the load is to be even, and the bar to move."""


def map_rows(function: Callable[[Row], Row], rows: Sequence[Row], label: str) -> list[Row]:
    """A `drone.data.prepare.Mapper`: the function over the rows, on every processor of Ray.

    Shows a progress bar. The results come in the order of the rows. What a person can mend (a
    DroneError, a full disk) is raised here as it was raised there.
    """
    if not rows:
        return []
    # Ray's bars count blocks and its log names operators; our bar counts files.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = int(ray.cluster_resources().get("CPU", 1))
    size = max(1, min(_PIECE, len(rows) // (16 * cpus)))
    pieces = [
        {"start": start, "rows": pickle.dumps(rows[start : start + size])}
        for start in range(0, len(rows), size)
    ]
    tasks = min(len(pieces), max(8 * cpus, len(rows) // _TASK))

    def look(piece: Row) -> Row:
        done: list[Row] | Exception
        try:
            done = [function(row) for row in pickle.loads(piece["rows"])]
        except (DroneError, OSError) as error:
            done = error
        return {"start": piece["start"], "rows": pickle.dumps(done)}

    mapped = ray.data.from_items(pieces, override_num_blocks=tasks).map(look)
    results: list[Row] = [{}] * len(rows)
    with _bar() as progress:
        task = progress.add_task(label, total=len(rows))
        for piece in mapped.iter_rows():
            done = pickle.loads(piece["rows"])
            if isinstance(done, Exception):
                raise done
            results[piece["start"] : piece["start"] + len(done)] = done
            progress.advance(task, len(done))
    return results


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
