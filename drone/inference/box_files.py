"""Reads boxes from CSV, YOLO and COCO files."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drone.errors import DataError
from drone.inference.boxes import Box

_COLUMNS = ("path", "x", "y", "w", "h")

_FORMATS = (
    "Boxes are a CSV with the columns path,x,y,w,h and optionally track and frame, YOLO files "
    "(one .txt per image, or a folder of them), or a COCO .json."
)


_OTHER_YOLO_FILES = ("classes.txt", "labels.txt", "train.txt", "val.txt", "test.txt")
"""Lists of classes and images that YOLO tools write beside the files of boxes."""


def read_boxes(source: Path) -> list[Box]:
    """Reads the boxes of a file, or of a folder of YOLO files.

    The content decides which format it is. Boxes without area are kept: `crop` says what is wrong
    with them, so that one bad box costs one answer.

    Args:
        source: CSV, COCO JSON or YOLO file, or a folder of YOLO files. Of a CSV, `file` may be the
            name of the column path; other columns are ignored.

    Raises:
        DataError: It cannot be read, has no box, or a line of it is not a box.
    """
    try:
        boxes = list(_folder_boxes(source) if source.is_dir() else _file_boxes(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"The boxes {source} cannot be read: {reason}. {_FORMATS}") from error
    if not boxes:
        raise DataError(f"{source} has no boxes. {_FORMATS}")
    return boxes


def _folder_boxes(folder: Path) -> Iterator[Box]:
    for file in sorted(folder.rglob("*.txt")):
        if file.name not in _OTHER_YOLO_FILES:
            yield from _yolo_boxes(file, file.relative_to(folder).with_suffix("").as_posix())


def _file_boxes(file: Path) -> Iterator[Box]:
    # utf-8-sig: spreadsheets write a byte order mark before the first column's name.
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith(("{", "[")):
        return _coco_boxes(file, text)
    if "," in text:
        return _csv_boxes(file, text)
    return _yolo_boxes(file, file.stem)


def _csv_boxes(file: Path, text: str) -> Iterator[Box]:
    reader = csv.reader(text.splitlines())
    header = [name.strip().lower() for name in next(reader)]
    names = ["path" if name == "file" else name for name in header]
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise DataError(
            f"{file} has no column {', '.join(missing)}. It has: {', '.join(header)}. {_FORMATS}"
        )
    for row in reader:
        if row:
            origin = f"{file}, line {reader.line_num}"
            # A short row lacks its last values; `_number` reports the missing ones.
            yield _csv_box(origin, dict(zip(names, map(str.strip, row), strict=False)))


def _csv_box(origin: str, row: Mapping[str, str]) -> Box:
    if not row.get("path"):
        raise DataError(f"{origin}: the path is empty. Fill it in or delete the line.")
    x, y, w, h = (_number(origin, name, row.get(name, "")) for name in ("x", "y", "w", "h"))
    frame = row.get("frame", "")
    if frame and not frame.isdecimal():
        raise DataError(f"{origin}: frame is {frame!r}; it must be a whole number from 0.")
    return Box(
        path=row["path"],
        x=x,
        y=y,
        w=w,
        h=h,
        track=row.get("track", ""),
        frame=int(frame) if frame else None,
        origin=origin,
    )


def _yolo_boxes(file: Path, path: str) -> Iterator[Box]:
    """Reads lines of class, centre x and y, width and height, maybe confidence, maybe track."""
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        values, origin = line.split(), f"{file}, line {number}"
        if not values:
            continue
        if not 5 <= len(values) <= 7:
            raise DataError(
                f"{origin}: it has {len(values)} values; a box of YOLO has 5: class, centre x and "
                f"y, width and height, and maybe confidence and track. {_FORMATS}"
            )
        names = ("centre x", "centre y", "width", "height")
        x, y, w, h = (
            _share(origin, name, value) for name, value in zip(names, values[1:5], strict=True)
        )
        track = values[6] if len(values) == 7 else ""
        yield Box(
            path=path, x=x - w / 2, y=y - h / 2, w=w, h=h, relative=True, track=track, origin=origin
        )


def _coco_boxes(file: Path, text: str) -> Iterator[Box]:
    try:
        content = json.loads(text)
        paths = {image["id"]: image["file_name"] for image in content["images"]}
        annotations = content["annotations"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{file} is no COCO file: it needs images with id and file_name, and annotations with "
            f"image_id and bbox. {_FORMATS}"
        ) from error
    for number, annotation in enumerate(annotations, 1):
        yield _coco_box(f"{file}, annotation {number}", annotation, paths)


def _coco_box(origin: str, annotation: Any, paths: Mapping[Any, str]) -> Box:
    try:
        path, bbox = paths[annotation["image_id"]], annotation["bbox"]
        x, y, w, h = (_number(origin, "bbox", value) for value in bbox)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{origin} needs the image_id of one of the images, and a bbox of x, y, width and "
            f"height in pixels."
        ) from error
    track = annotation.get("track_id", "")
    return Box(path=path, x=x, y=y, w=w, h=h, track=str(track), origin=origin)


def _number(origin: str, name: str, value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{origin}: {name} is {value!r}; it must be a number, in pixels.")
    return number


def _share(origin: str, name: str, value: str) -> float:
    share = _number(origin, name, value)
    if not 0 <= share <= 1:
        raise DataError(
            f"{origin}: {name} is {value}; YOLO files have shares of the image's sides, 0 to 1."
        )
    return share
