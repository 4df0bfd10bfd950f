"""The audit of a data set: one self-contained HTML page, and its tables as CSV files."""

import csv
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from drone.curation import audit
from drone.curation.thumbnails import thumbnail
from drone.data.prepare.plan import Mapper, PreparePlan, Row
from drone.data.prepare.roots import Opener
from drone.data.prepare.verdicts import STEPS
from drone.labels import NONE
from drone.serving.preprocess import Preprocessing

_THUMBNAIL_PX = 128

_MAX_SAMPLES, _MAX_ERRORS, _MAX_SETS, _MAX_TILES, _MAX_OUTLIERS = 8, 200, 40, 12, 12
"""Shown on the page: samples per class, errors, sets of duplicates per section, images per set,
outliers of each kind. The CSV files have all of them."""

_SET_KEYS = {"copies": "content", "near_duplicates": "group"}
"""Column that names the set, by table."""

_Tile = dict[str, Any]
"""An image on the page: `path`, `label` (its class, or that of negatives and the kind), `note`."""

_Section = dict[str, list[_Tile]]
"""Tiles by heading."""


def write_audit(plan: PreparePlan, folder: Path, mapper: Mapper) -> None:
    """Writes audit.html and tables/*.csv of a planned data set into its folder.

    A `drone.data.prepare.write.WriteAudit`.

    Args:
        plan: The data set, whose raw files are read again for the thumbnails.
        folder: Folder of the data set.
        mapper: Makes the thumbnails.
    """
    tables = _tables(plan)
    (folder / "tables").mkdir(exist_ok=True)
    for name, table in tables.items():
        # Quoted: a carriage return in a path would end the line for those who read it.
        file = folder / "tables" / f"{name}.csv"
        table.to_csv(file, index=False, quoting=csv.QUOTE_NONNUMERIC)
    sections = _sections(plan, tables)
    environment = Environment(
        loader=PackageLoader("drone.curation"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("audit.html").render(
        title=f"data set {plan.fingerprint[:12]}",
        facts=_facts(plan),
        labels=plan.labels,
        steps=plan.steps,
        splits=plan.splits,
        negatives=_as_lists(_negatives(plan)) if plan.kinds else None,
        left_out=plan.left_out,
        removed=[step for step in STEPS if plan.steps.loc[step, "total"]],
        tables={name: _as_lists(table) for name, table in tables.items()},
        sections=sections,
        images=_thumbnails(plan, _paths(sections), mapper),
        leakage=audit.leakage(plan.manifest, plan.settings.split),
        counts={name: _set_counts(tables[name], key) for name, key in _SET_KEYS.items()},
        limits={"errors": _MAX_ERRORS, "sets": _MAX_SETS},
    )
    (folder / "audit.html").write_text(html, "utf-8")


def _roots(plan: PreparePlan) -> list[str]:
    return sorted(set(plan.manifest["root"]))


def _tables(plan: PreparePlan) -> dict[str, pd.DataFrame]:
    """Returns the tables of the audit by the names of their CSV files."""
    manifest = plan.manifest
    tables = {
        "errors": audit.errors(manifest),
        "copies": audit.copies(manifest),
        "near_duplicates": audit.near_duplicates(manifest),
        # The index holds the sizes, and to_csv below leaves it out.
        "sizes": audit.sizes(manifest).reset_index(),
        "sizes_below_224": audit.sizes_below_smallest_bin(manifest).reset_index(),
        "formats": audit.formats(manifest),
        "outliers": audit.outliers(manifest),
    }
    provenance = audit.read_provenance(_roots(plan), plan.opener)
    if len(provenance):
        tables["provenance"] = audit.sources(manifest, provenance)
    return tables


def _sections(plan: PreparePlan, tables: Mapping[str, pd.DataFrame]) -> dict[str, _Section]:
    """Returns the images to show in each section of the page."""
    return {
        "samples": _samples(plan.manifest, "class_name", plan.classes),
        "negatives": _samples(_negative_rows(plan.manifest), "kind", plan.kinds),
        "across": _sets(tables["copies"].query("across"), "content"),
        "within": _sets(tables["copies"].query("not across"), "content"),
        "near": _sets(tables["near_duplicates"], "group"),
        "outliers": _outliers(tables["outliers"]),
    }


def _facts(plan: PreparePlan) -> dict[str, str]:
    settings = plan.settings
    return {
        **_folders(plan),
        "fingerprint": plan.fingerprint,
        "copies in several classes": settings.policy,
        "near duplicates": (
            f"{settings.near_duplicates}, up to {settings.near_duplicate_threshold} bits"
        ),
    }


def _negatives(plan: PreparePlan) -> pd.DataFrame:
    """Returns the counts of negatives by kind, without the steps that changed nothing."""
    by_kind = plan.negatives
    return by_kind.loc[:, by_kind.ne(0).any()].reset_index()


def _negative_rows(manifest: pd.DataFrame) -> pd.DataFrame:
    return manifest[manifest["class_name"] == NONE]


def _folders(plan: PreparePlan) -> dict[str, str]:
    is_negative = plan.manifest["kind"] != ""
    parts = {"raw": plan.manifest[~is_negative], "negatives": plan.manifest[is_negative]}
    return {name: ", ".join(sorted(set(part["root"]))) for name, part in parts.items() if len(part)}


def _samples(manifest: pd.DataFrame, column: str, names: Iterable[str]) -> _Section:
    """Returns some kept images of each class or kind; the order of md5 is as good as random."""
    kept = manifest[manifest["kept"]].sort_values("md5")
    return {name: _tiles(kept[kept[column] == name].head(_MAX_SAMPLES), "") for name in names}


def _sets(table: pd.DataFrame, key: str) -> _Section:
    """Returns the first sets of copies or near duplicates."""
    names = table[key].drop_duplicates().head(_MAX_SETS)
    return {name: _tiles(table[table[key] == name].head(_MAX_TILES), "kept") for name in names}


def _outliers(table: pd.DataFrame) -> _Section:
    return {
        str(kind): _tiles(rows.head(_MAX_OUTLIERS), "value")
        for kind, rows in table.groupby("what", sort=False)
    }


def _tiles(rows: pd.DataFrame, note_column: str) -> list[_Tile]:
    return [
        {
            "path": row["path"],
            "label": ": ".join(filter(None, (row["given_class"], row["kind"]))),
            "note": _note(row.get(note_column, "")),
        }
        for row in rows.to_dict("records")
    ]


def _note(value: object) -> str:
    if isinstance(value, bool):
        return "kept" if value else "left out"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _paths(sections: Mapping[str, _Section]) -> set[str]:
    # A set: an image in several sections is decoded and embedded once.
    return {
        str(tile["path"])
        for section in sections.values()
        for tiles in section.values()
        for tile in tiles
    }


def _thumbnails(plan: PreparePlan, paths: Iterable[str], mapper: Mapper) -> dict[str, str]:
    """Returns thumbnails as data URIs by path; files that cannot be read are missing."""
    # Raw folders may share a path; the page shows the first.
    roots = plan.manifest.drop_duplicates("path").set_index("path")["root"]
    files = sorted({(str(roots[path]), path) for path in paths})
    thumbnail_row = functools.partial(
        _thumbnail_row, settings=plan.settings.preprocessing, opener=plan.opener
    )
    rows = mapper(thumbnail_row, [{"root": root, "path": path} for root, path in files], "audit")
    return {path: row["image"] for (_, path), row in zip(files, rows, strict=True) if row["image"]}


def _thumbnail_row(row: Row, settings: Preprocessing, opener: Opener) -> Row:
    return {"image": thumbnail(row["root"], row["path"], settings, opener, _THUMBNAIL_PX)}


def _set_counts(table: pd.DataFrame, key: str) -> dict[str, int]:
    """Returns the number of sets, of those across classes, and of images."""
    sets = table.drop_duplicates(key)
    return {"sets": len(sets), "across": int(sets["across"].sum()), "images": len(table)}


def _as_lists(table: pd.DataFrame) -> dict[str, Sequence[Any]]:
    return {"columns": list(table.columns), "rows": table.to_numpy().tolist()}
