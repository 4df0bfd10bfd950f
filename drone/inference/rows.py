"""Rows of predictions, and tables of them."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import json as arrow_json

from drone.inference.items import Item
from drone.serving.predictor import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The prediction of an image, a frame or a box, or why there is none."""

    item: Item

    is_last: bool = True
    """Whether it is the last row of its item, which is finished with it."""

    frame: int | None = None
    """Number of the frame in its clip, from 0; None for an image."""

    time_s: float | None = None
    """Time of the frame in seconds; None for an image."""

    box: tuple[float, float, float, float] | None = None
    """Left and top edge, width and height in pixels of what was classified; None for all of it."""

    track: str | None = None
    """Name of the object that boxes follow through a clip; None without one."""

    md5: str = ""
    """md5 of the file's bytes, hexadecimal; empty if it cannot be read or is too large."""

    prediction: Prediction | None = None

    reason: str = ""
    """One of `ImageError.REASONS`, "unreadable", "bad-box" or "damaged-clip"; empty if there is a
    prediction."""

    detail: str = ""
    """The reason in a sentence."""

    thumbnail: bytes = b""
    """Small JPEG of what the model has seen; empty if there is no prediction."""


def schema(classes: Sequence[str]) -> pa.Schema:
    """Returns the columns of the predictions of a model, by its class names."""
    return pa.schema(
        [
            ("path", pa.string()),
            ("sequence", pa.string()),
            ("frame", pa.int32()),
            ("time_s", pa.float64()),
            *((name, pa.float32()) for name in ("x", "y", "w", "h")),
            ("track", pa.string()),
            ("md5", pa.string()),
            ("label", pa.string()),
            ("confidence", pa.float32()),
            ("unsure", pa.bool_()),
            ("known", pa.float32()),
            ("alarm", pa.bool_()),
            *((probability_column(name), pa.float32()) for name in classes),
            ("reason", pa.string()),
            ("detail", pa.string()),
        ]
    )


def probability_column(class_name: str) -> str:
    """Returns the column of a class's probability; a class may itself be called "path"."""
    return f"probability {class_name}"


def to_table(rows: Sequence[Row], classes: Sequence[str]) -> pa.Table:
    """Returns rows as a table with the columns of `schema`."""
    return table_of([record_of(row) for row in rows], schema(classes))


def table_of(records: Sequence[Mapping[str, Any]], columns: pa.Schema) -> pa.Table:
    """Returns records as a table; a value that a record lacks is null."""
    # Through JSON: `pa.array` imports pandas, which takes longer than a few predictions do.
    lines = "\n".join(map(json.dumps, records)).encode()
    # In one block: a record that is longer than a block could not be read.
    read = arrow_json.ReadOptions(block_size=len(lines) + 1, use_threads=False)
    parse = arrow_json.ParseOptions(explicit_schema=columns, unexpected_field_behavior="error")
    return arrow_json.read_json(io.BytesIO(lines), read, parse)


def record_of(row: Row) -> dict[str, Any]:
    """Returns the values of a row by column; those that it lacks are missing or None."""
    item, prediction = row.item, row.prediction
    columns = {
        "path": item.path,
        "sequence": _sequence(row),
        "frame": row.frame,
        "time_s": row.time_s,
        **dict(zip("xywh", row.box or (), strict=False)),
        "track": row.track,
        "md5": row.md5,
        "reason": row.reason,
        "detail": row.detail,
    }
    if prediction is None:
        return columns
    return {
        **columns,
        "label": prediction.label,
        "confidence": prediction.confidence,
        "unsure": prediction.unsure,
        "known": prediction.known,
        "alarm": prediction.alarm,
        **{probability_column(name): p for name, p in prediction.probabilities.items()},
    }


def _sequence(row: Row) -> str | None:
    """Returns the clip or the folder that the row is a frame of; None for any other."""
    if row.frame is None:
        return None
    return row.item.sequence or row.item.path
