"""Reads image URLs from a CSV or parquet file."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from drone.collect.folders import folder_of
from drone.collect.provenance import ImageUrl
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES, ClassSet, normalised

_COLUMNS = ("url", "class", "source", "licence")
_OPTIONAL_COLUMNS = ("creator", "attribution", "landing_page")


def read_table(
    file: Path, classes: ClassSet = CLASSES, *, negatives: bool = False
) -> list[ImageUrl]:
    """Reads the image URLs of a table.

    Args:
        file: CSV (UTF-8) or parquet file with the columns url, class, source and licence;
            creator, attribution and landing_page are optional.
        classes: The classes.
        negatives: Whether the column class holds kinds of negatives.

    Raises:
        DataError: The table cannot be read, lacks a column, has no row or has an invalid one.
    """
    image_urls = [
        _image_url(file, location, row, classes, negatives) for location, row in _rows(file)
    ]
    if not image_urls:
        raise DataError(f"{file} has no rows. Add one per image: {', '.join(_COLUMNS)}.")
    return image_urls


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the location of each row, for error messages, and its values by column."""
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            yield from _parquet_rows(file)
        else:
            yield from _csv_rows(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"The table {file} cannot be read: {reason}. --table takes CSV in UTF-8 and parquet."
        ) from error


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        frame = pd.read_parquet(file)
    except ValueError as error:  # pyarrow raises this for a file of another format.
        raise DataError(f"The table {file} is not a parquet file: {error}") from error
    names = _column_names(file, [str(name) for name in frame.columns])
    texts = frame.astype("string").fillna("").to_numpy()
    for number, row in enumerate(texts, 1):
        yield f"row {number}", dict(zip(names, map(str, row), strict=True))


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    # utf-8-sig: spreadsheets write a byte order mark before the first column's name.
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        names = _column_names(file, next(reader, []))
        for row in reader:
            if row:
                # A short row lacks its last values; `_image_url` reports the missing ones.
                yield f"line {reader.line_num}", dict(zip(names, row, strict=False))


def _column_names(file: Path, header: Sequence[str]) -> list[str]:
    """Returns the names of the columns, with case, punctuation and "license" normalised."""
    spellings = {normalised(name): name for name in (*_COLUMNS, *_OPTIONAL_COLUMNS)}
    spellings["license"] = "licence"
    names = [spellings.get(normalised(name), name) for name in header]
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise DataError(
            f"The table {file} has no column {', '.join(missing)}. It has: "
            f"{', '.join(header) or 'none'}. Required: {', '.join(_COLUMNS)}."
        )
    return names


def _image_url(
    file: Path, location: str, row: Mapping[str, str], classes: ClassSet, negatives: bool
) -> ImageUrl:
    values = {name: (row.get(name) or "").strip() for name in (*_COLUMNS, *_OPTIONAL_COLUMNS)}
    if not values["url"]:
        raise DataError(f"{file}, {location}: the url is empty. Fill it in or delete the row.")
    name = values.pop("class")
    try:
        return ImageUrl(class_name=folder_of(name, classes, negatives=negatives), **values)
    except ConfigError as error:
        raise DataError(f"{file}, {location}: {error}") from error
