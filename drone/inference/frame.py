"""Predictions as a pandas frame, from Python."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from drone.data.prepare.roots import Opener, open_root
from drone.inference.listing import list_items
from drone.inference.prediction import predict_rows
from drone.inference.rows import to_table
from drone.serving.predictor import Predictor

_BATCH_SIZE = 512


def predict_frame(
    predictor: Predictor, images: Sequence[str | Path], opener: Opener = open_root
) -> pd.DataFrame:
    """Returns the predictions of images, with the columns that the job writes.

    Args:
        predictor: The model; one with `threads=1` is fastest.
        images: Folders, zip archives, files or globs.
        opener: Opens them by name; `drone.storage.open_root` opens URIs such as s3://... too.

    Raises:
        DataError: A name leads to nothing, or there are no files.
    """
    items = list_items([str(name) for name in images], opener)
    rows = predict_rows(predictor, items, opener)
    tables = []
    # A few at a time: rows hold thumbnails, which a table does not need.
    while batch := list(itertools.islice(rows, _BATCH_SIZE)):
        tables.append(to_table(batch, predictor.info.classes))
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return frame
