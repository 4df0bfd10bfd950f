"""The audit as one HTML file that needs nothing beside it, and its tables as CSV."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from drone.data import audit
from drone.data.clean import STEPS
from drone.data.collect import provenance
from drone.data.embed import as_jpeg
from drone.data.roots import Opener
from drone.data.split import SplitSettings
from drone.errors import DataError, ImageError
from drone.serving.preprocess import Preprocessing, load_roughly, open_header

THUMBNAIL_PX = 128
_SAMPLES, _ERRORS, _SETS, _OUTLIERS = 8, 200, 40, 12
"""Shown on the page: pictures a class, errors, sets of each kind, pictures of each kind."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the audit is about."""

    title: str
    frame: pd.DataFrame
    classes: Sequence[str]
    steps: pd.DataFrame
    splits: pd.DataFrame
    shares: SplitSettings
    facts: Mapping[str, str]
    unknown_folders: Sequence[str]
    provenance: pd.DataFrame = field(default_factory=pd.DataFrame)
    """See `read_provenance`."""


Thumbnails = Callable[[Sequence[tuple[str, str]]], Mapping[tuple[str, str], str]]
"""Gives small pictures as data URIs by root and path; what cannot be read is missing."""


def write(subject: Subject, folder: Path, thumbnails: Thumbnails) -> None:
    """Writes audit.html and tables/*.csv into the folder of a data set."""
    frame = subject.frame
    tables = {
        "errors": audit.errors(frame),
        "copies": audit.copies(frame),
        "near_duplicates": audit.near_duplicates(frame),
        "sizes": audit.sizes(frame).reset_index(),
        "sizes_below_224": audit.below_smallest(frame).reset_index(),
        "formats": audit.formats(frame),
        "outliers": audit.outliers(frame),
    }
    if len(subject.provenance):
        tables["provenance"] = _origins(subject)
    (folder / "tables").mkdir(exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    sections = {
        "samples": _samples(frame, subject.classes),
        "across": _sets(tables["copies"].query("across"), "md5"),
        "within": _sets(tables["copies"].query("not across"), "md5"),
        "near": _sets(tables["near_duplicates"], "group"),
        "outliers": _by_kind(tables["outliers"]),
    }
    places = frame.drop_duplicates("path").set_index("path")["root"]
    wanted = sorted({(str(places[path]), path) for path in _paths(sections)})
    shown = {path: picture for (_, path), picture in thumbnails(wanted).items()}
    environment = Environment(
        loader=PackageLoader("drone.data"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("audit.html").render(
        subject=subject,
        removed=[step for step in STEPS if subject.steps.loc[step, "total"]],
        tables={name: _plain(table) for name, table in tables.items()},
        sections=sections,
        pictures=shown,
        leak=audit.leakage(frame, subject.shares),
        counts={name: _count(tables[name], key) for name, key in _KEYS.items()},
        limits={"errors": _ERRORS, "sets": _SETS},
    )
    (folder / "audit.html").write_text(html, "utf-8")


_KEYS = {"copies": "md5", "near_duplicates": "group"}

Tile = dict[str, Any]
Section = dict[str, list[Tile]]


def _samples(frame: pd.DataFrame, classes: Iterable[str]) -> Section:
    """Some kept pictures of each class; the order of their md5 is as good as random."""
    kept = frame[frame["kept"]].sort_values("md5")
    return {name: _tiles(kept[kept["class_name"] == name].head(_SAMPLES), "") for name in classes}


def _sets(table: pd.DataFrame, key: str) -> Section:
    """The first sets of copies or near duplicates, their pictures side by side."""
    names = table[key].drop_duplicates().head(_SETS)
    return {name: _tiles(table[table[key] == name].head(12), "kept") for name in names}


def _by_kind(table: pd.DataFrame) -> Section:
    return {
        str(what): _tiles(own.head(_OUTLIERS), "value")
        for what, own in table.groupby("what", sort=False)
    }


def _tiles(rows: pd.DataFrame, note: str) -> list[Tile]:
    tiles = []
    for row in rows.to_dict("records"):
        said = row.get(note, "")
        if isinstance(said, bool):
            said = "kept" if said else "left out"
        elif isinstance(said, float):
            said = f"{said:.2f}"
        tiles.append({"path": row["path"], "class_name": row["given_class"], "note": said})
    return tiles


def _paths(sections: Mapping[str, Section]) -> set[str]:
    return {
        str(tile["path"])
        for section in sections.values()
        for tiles in section.values()
        for tile in tiles
    }


def _count(table: pd.DataFrame, key: str) -> dict[str, int]:
    """Sets in all and those across classes."""
    sets = table.drop_duplicates(key)
    return {"sets": len(sets), "across": int(sets["across"].sum()), "pictures": len(table)}


def _plain(table: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(table.columns), "rows": table.to_numpy().tolist()}


def _origins(subject: Subject) -> pd.DataFrame:
    """Kept pictures by source and licence."""
    known = subject.provenance.drop_duplicates("md5")
    kept = subject.frame.loc[subject.frame["kept"], ["md5"]].merge(known, on="md5", how="left")
    kept = kept.fillna({"source": "not recorded", "licence": "not recorded"})
    return kept.groupby(["source", "licence"]).size().rename("pictures").reset_index()


def read_provenance(roots: Iterable[str], opener: Opener) -> pd.DataFrame:
    """Where pictures are from, as `collect` recorded it beside the class folders.

    Returns:
        Columns `md5`, `source` and `licence`; empty if no root has such a file.
    """
    rows = []
    for root in roots:
        try:
            content = opener(root).read(provenance.NAME, 2**30)
        except (OSError, DataError):
            continue
        for _, told in provenance.objects(content):
            if told.get("md5"):  # Not the last line of a collection that was cut short.
                rows.append([str(told.get(name) or "") for name in ("md5", "source", "licence")])
    return pd.DataFrame(rows, columns=["md5", "source", "licence"])


def thumbnail(
    root: str, path: str, settings: Preprocessing, opener: Opener, side_px: int = THUMBNAIL_PX
) -> str:
    """A small JPEG of a file as a data URI; empty if it cannot be read."""
    try:
        data = opener(root).read(path, settings.max_bytes)
        image = load_roughly(open_header(data, settings), side_px)
    except (OSError, ImageError, DataError):
        return ""
    image.thumbnail((side_px, side_px))
    return as_jpeg(image)
