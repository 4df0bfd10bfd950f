"""The predictions of items, one row each, whatever the files hold."""

import functools
import hashlib
import io
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import json as arrow_json

from drone.data.prepare.roots import Opener, open_root
from drone.errors import ImageError
from drone.inference.items import Item
from drone.serving.many import UNREADABLE, cannot_be_read, map_ahead
from drone.serving.predictor import Prediction, Predictor

THUMBNAIL_PX = 144
"""Maximum width and height of the images on the contact sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The prediction of one item, or why there is none."""

    item: Item

    md5: str = ""
    """md5 of the file's bytes, hexadecimal; empty if it cannot be read or is too large."""

    prediction: Prediction | None = None

    reason: str = ""
    """One of `ImageError.REASONS`, or "unreadable"; empty if there is a prediction."""

    detail: str = ""
    """The reason in a sentence."""

    thumbnail: bytes = b""
    """Small JPEG of what the model has seen; empty if there is no prediction."""


def predict_rows(
    predictor: Predictor,
    items: Iterable[Item],
    opener: Opener = open_root,
    threads: int | None = None,
) -> Generator[Row, None, None]:
    """Yields a row for each item, in their order; never raises for a bad file.

    Args:
        predictor: The model; one with `threads=1` is fastest, since each image has a thread.
        items: What to predict; taken as fast as rows are consumed.
        opener: Opens the roots of the items.
        threads: Images in work at the same time; None takes one per core.
    """
    return map_ahead(functools.partial(predict_row, predictor, opener), items, threads)


def predict_row(predictor: Predictor, opener: Opener, item: Item) -> Row:
    """Returns the row of one item; never raises for a bad file."""
    max_bytes = predictor.info.preprocessing.max_bytes
    try:
        data = opener(item.root).read(item.name, max_bytes)
    except OSError as error:
        return Row(item=item, reason=UNREADABLE, detail=cannot_be_read(error))
    # Not for security, which lets it run where FIPS rules forbid md5. Of a file that is too large
    # only the beginning was read.
    md5 = "" if len(data) > max_bytes else hashlib.md5(data, usedforsecurity=False).hexdigest()
    try:
        pixels_HWC, size = _pixels_and_size(predictor, data)
    except ImageError as error:
        return Row(item=item, md5=md5, reason=error.reason, detail=str(error))
    prediction = predictor.predict_one(pixels_HWC)
    return Row(item=item, md5=md5, prediction=prediction, thumbnail=_thumbnail(pixels_HWC, size))


def _pixels_and_size(
    predictor: Predictor, data: bytes
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Returns an image as the model's input, and its own width and height."""
    # In a function: the decoded image may be large, and is released before the prediction.
    with predictor.decoded(data) as image:
        return predictor.resize(image), image.size


def _thumbnail(pixels_HWC: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """Returns the model's input as a small JPEG of the image's own aspect ratio."""
    scale = THUMBNAIL_PX / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).resize((width, height)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def schema(classes: Sequence[str]) -> pa.Schema:
    """Returns the columns of the predictions of a model, by its class names."""
    return pa.schema(
        [
            ("path", pa.string()),
            ("frame", pa.int32()),
            ("time_s", pa.float64()),
            *((name, pa.float32()) for name in ("x", "y", "w", "h")),
            ("track", pa.string()),
            ("md5", pa.string()),
            ("label", pa.string()),
            ("confidence", pa.float32()),
            ("unsure", pa.bool_()),
            ("known", pa.float32()),
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
        "frame": item.frame,
        "time_s": item.time_s,
        **dict(zip("xywh", item.box or (), strict=False)),
        "track": item.track,
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
        **{probability_column(name): p for name, p in prediction.probabilities.items()},
    }
