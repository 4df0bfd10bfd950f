"""The contact sheet: a page that shows the images by class, surest or least sure first.

The page itself holds counts alone. The images are in files of a hundred or so beside it, each of
which is loaded when it is shown, so a page on 100,000 images opens at once. They are scripts, since
a browser does not let a page from a disk read other files.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray

from drone.data.embed import heat_map_script
from drone.files import replacing_folder, write_whole
from drone.inference.parts import Part
from drone.labels import NONE

NOT_READ = "not read"
"""Group of the files without a prediction."""

_PAGE_SIZE = 120
"""Images in one file: about half a megabyte."""


@dataclass(frozen=True)
class _Index:
    """Where the card of each of N rows is, and what decides on its place."""

    group_N: NDArray[np.int64]
    """Index of the row's group."""

    confidence_N: NDArray[np.float64]
    """Confidence; NaN for files without a prediction."""

    part_N: NDArray[np.int64]
    """Index of the file with its card."""

    start_N: NDArray[np.int64]
    """Where in that file it starts."""

    bytes_N: NDArray[np.int64]
    """Its length."""

    files: Sequence[Path]
    """Files with cards."""


def write_contact_sheet(
    parts: Iterator[Part],
    classes: Sequence[str],
    target: Path,
    facts: Sequence[str],
    *,
    alarms: bool = False,
) -> None:
    """Writes the page and the folder of its files, in memory for a few numbers per image.

    Args:
        parts: All rows.
        classes: Class names.
        target: HTML file to write; the folder beside it has its name and "_pages".
        facts: Sentences to show at the top.
        alarms: Whether the model has an alarm, by which images can be filtered.

    Raises:
        OSError: They cannot be written.
    """
    groups = [*classes, NONE, NOT_READ]
    index = _read_index(parts, groups)
    folder = target.with_name(f"{target.stem}_pages")
    with replacing_folder(folder) as building:
        pages = [list(_write_group(index, number, building)) for number in range(len(groups))]
    sheet = [
        {"name": name, "pages": of_group} for name, of_group in zip(groups, pages, strict=True)
    ]
    content = {
        "groups": sheet,
        "classes": list(classes),
        "folder": folder.name,
        "alarms": alarms,
    }
    environment = Environment(
        loader=PackageLoader("drone.inference"), autoescape=select_autoescape()
    )
    # A class whose name contains "</script>" must not end the script element that holds the data.
    data = json.dumps(content).replace("<", "\\u003c")
    html = environment.get_template("contact_sheet.html").render(
        data=data, facts=facts, heat_map=heat_map_script()
    )
    write_whole(target, html.encode())


def _read_index(parts: Iterator[Part], groups: Sequence[str]) -> _Index:
    group_of = {name: number for number, name in enumerate(groups)}
    columns: list[list[NDArray[Any]]] = [[], [], [], [], []]
    files: list[Path] = []
    for part in parts:
        table = part.table
        labels = [label or NOT_READ for label in table["label"].to_pylist()]
        # Not `to_numpy`, which imports pandas; None becomes NaN.
        confidence = np.array(table["confidence"].to_pylist(), np.float64)
        values = (
            np.array([group_of[label] for label in labels], np.int64),
            confidence,
            np.full(len(labels), len(files)),
            np.array(table["card_start"].to_pylist(), np.int64),
            np.array(table["card_bytes"].to_pylist(), np.int64),
        )
        for column, array in zip(columns, values, strict=True):
            column.append(array)
        files.append(part.cards)
    group_N, confidence_N, part_N, start_N, bytes_N = map(np.concatenate, columns)
    return _Index(group_N, confidence_N, part_N, start_N, bytes_N, files)


def _write_group(index: _Index, group: int, folder: Path) -> Iterator[dict[str, float]]:
    """Writes the files of a group, surest first; yields what the page must know of each."""
    rows = np.flatnonzero(index.group_N == group)
    rows = rows[np.argsort(-index.confidence_N[rows], kind="stable")]
    for number, start in enumerate(range(0, len(rows), _PAGE_SIZE)):
        page = rows[start : start + _PAGE_SIZE]
        cards = b",\n".join(_read_card(index, row) for row in page)
        script = b'show("%d-%d", [\n%b\n]);\n' % (group, number, cards)
        (folder / f"{group}-{number}.js").write_bytes(script)
        # As the cards have it: a filter on the page compares both. What has no confidence passes.
        confidence = index.confidence_N[page].round(4)
        highest, lowest = float(confidence[0]), float(confidence[-1])
        has_confidence = not math.isnan(highest)
        yield {
            "num": len(page),
            "max": highest if has_confidence else 1,
            "min": lowest if has_confidence else 0,
        }


def _read_card(index: _Index, row: int) -> bytes:
    with index.files[index.part_N[row]].open("rb") as stream:
        return os.pread(stream.fileno(), int(index.bytes_N[row]), int(index.start_N[row]))
