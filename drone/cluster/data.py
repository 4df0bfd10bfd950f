"""Maps files through Ray Data: the scan and the packing of a data set, over all CPUs."""

import logging
import pickle
import threading
from collections.abc import Callable, Sequence

import ray
import ray.data

from drone.cluster import head_files  # noqa: F401  Makes head:// reachable in this process.
from drone.data.prepare.plan import Row
from drone.errors import DroneError

_MAX_CHUNK, _MAX_TASK = 128, 1024
"""Maximum rows that travel as one value, and in one task. A row of Ray Data for each file would
cost more than scanning the file, and so would a task for few; yet the load must be even, and the
progress bar must move."""

_MAX_JOIN_S = 5.0


def map_rows(
    function: Callable[[Row], Row], rows: Sequence[Row], advance: Callable[[int], object]
) -> list[Row]:
    """Applies a function to rows on every CPU of Ray.

    Args:
        function: What is applied; it travels to the workers.
        rows: Its arguments.
        advance: Called with the number of rows that are done in addition.

    Returns:
        The results, in the order of the rows. What the user can fix (a DroneError, a full disk) is
        raised here as it was raised there.
    """
    if not rows:
        return []
    # Ray's bars count blocks and its log names operators; the caller's bar counts files.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = int(ray.cluster_resources().get("CPU", 1))
    size = max(1, min(_MAX_CHUNK, len(rows) // (16 * cpus)))
    # Pickled: Ray Data would make Arrow columns of the keys and infer their types.
    chunks = [
        {"start": start, "rows": pickle.dumps(rows[start : start + size])}
        for start in range(0, len(rows), size)
    ]
    num_tasks = min(len(chunks), max(8 * cpus, len(rows) // _MAX_TASK))

    def map_chunk(chunk: Row) -> Row:
        results: list[Row] | Exception
        try:
            results = [function(row) for row in pickle.loads(chunk["rows"])]
        except (DroneError, OSError) as error:
            # As a value: what a task raises arrives wrapped, and with a traceback in the log.
            results = error
        return {"start": chunk["start"], "rows": pickle.dumps(results)}

    other_threads = set(threading.enumerate())
    mapped = ray.data.from_items(chunks, override_num_blocks=num_tasks).map(map_chunk)
    results: list[Row] = [{}] * len(rows)
    try:
        for chunk in mapped.iter_rows():
            mapped_rows = pickle.loads(chunk["rows"])
            if isinstance(mapped_rows, Exception):
                raise mapped_rows
            results[chunk["start"] : chunk["start"] + len(mapped_rows)] = mapped_rows
            advance(len(mapped_rows))
    finally:
        # Ray Data's threads end a moment after the last row, or an error. One that called Ray when
        # it is shut down would end this process, without a word.
        for thread in set(threading.enumerate()) - other_threads:
            thread.join(_MAX_JOIN_S)
    return results
