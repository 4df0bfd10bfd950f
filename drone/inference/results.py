"""The table of all predictions, as parquet and CSV, and what it counts."""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow import compute, csv, parquet

from drone.files import replacing
from drone.inference.parts import Part
from drone.inference.rows import schema

_OPTIONAL = ("sequence", "frame", "time_s", "x", "y", "w", "h", "track", "alarm")
"""Columns that only frames, boxes and models with an alarm have."""


@dataclass
class Counts:
    """What the predictions are, in numbers."""

    labels: Counter[str] = field(default_factory=Counter)
    """Images by label."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Files without a prediction, by reason."""

    num_unsure: int = 0

    num_alarms: int = 0

    def add(self, table: pa.Table) -> None:
        """Adds some rows."""
        is_predicted = compute.is_valid(table["label"])
        self.labels.update(table["label"].filter(is_predicted).to_pylist())
        self.reasons.update(table["reason"].filter(compute.invert(is_predicted)).to_pylist())
        self.num_unsure += compute.sum(table["unsure"]).as_py() or 0
        if "alarm" in table.column_names:
            self.num_alarms += compute.sum(table["alarm"]).as_py() or 0


def columns_of(classes: Sequence[str], optional: Collection[str] = ()) -> list[str]:
    """Returns the columns of the tables.

    Args:
        classes: Class names.
        optional: Those of `_OPTIONAL` that some row has.
    """
    return [name for name in schema(classes).names if name not in _OPTIONAL or name in optional]


def optional_columns(parts: Iterator[Part]) -> set[str]:
    """Returns the columns of `_OPTIONAL` that some row has."""
    return {
        name
        for part in parts
        for name in _OPTIONAL
        if part.table[name].null_count < part.table.num_rows
    }


def write_tables(parts: Iterator[Part], columns: Sequence[str], out: Path) -> Counts:
    """Writes predictions.parquet and predictions.csv, in memory for one part at a time.

    Args:
        parts: All rows.
        columns: Those to write; see `columns_of`.
        out: Folder to write to.

    Raises:
        OSError: They cannot be written; earlier ones stay as they were.
    """
    counts = Counts()
    with contextlib.ExitStack() as stack:
        names = ("predictions.parquet", "predictions.csv")
        files = [stack.enter_context(replacing(out / name)) for name in names]
        writers: list[parquet.ParquetWriter | csv.CSVWriter] = []
        # Closed before the files take their places.
        with contextlib.ExitStack() as opened:
            for part in parts:
                table = part.table.select(columns)
                if not writers:
                    kinds = (parquet.ParquetWriter, csv.CSVWriter)
                    writers += [
                        opened.enter_context(kind(file, table.schema))
                        for kind, file in zip(kinds, files, strict=True)
                    ]
                for writer in writers:
                    writer.write_table(table)
                counts.add(table)
    return counts
