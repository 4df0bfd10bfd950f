"""Maps files through Ray Data: the scan and the packing of a data set, over all processors."""

import logging
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

_ROWS_PER_BLOCK = 64
"""Files in one task: small enough for an even load and a bar that moves."""


def map_rows(function: Callable[[Row], Row], rows: Sequence[Row], label: str) -> list[Row]:
    """A `drone.data.prepare.Mapper`: the function over the rows, on every processor of Ray.

    Shows a progress bar. The results come in the order of the rows.
    """
    if not rows:
        return []
    # Ray's bars count blocks and its log names operators; our bar counts files.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = int(ray.cluster_resources().get("CPU", 1))
    blocks = min(len(rows), max(2 * cpus, len(rows) // _ROWS_PER_BLOCK))
    numbered = [{"number": number, **row} for number, row in enumerate(rows)]

    def with_number(row: Row) -> Row:
        number = row.pop("number")
        return {"number": number, **function(row)}

    mapped = ray.data.from_items(numbered, override_num_blocks=blocks).map(with_number)
    results: list[Row] = [{}] * len(rows)
    with _bar() as progress:
        task = progress.add_task(label, total=len(rows))
        for result in mapped.iter_rows():
            results[result.pop("number")] = result
            progress.advance(task)
    return results


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
