"""From raw folders to a data set: first the plan, then its application."""

import datetime
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drone.config import to_dict
from drone.data import ledger
from drone.data.clean import Policy, duplicate_table, judge, steps_table
from drone.data.dataset import (
    DATASET_FILE,
    MANIFEST_FILE,
    PIXELS_FOLDER,
    SCHEMA,
    Dataset,
    fingerprint,
    is_dataset,
    open_dataset,
)
from drone.data.hashing import DEFAULT_MAX_DISTANCE
from drone.data.pixels import SHARD_ROWS, pack_shard, shard_name
from drone.data.scan import Listing, Record, Source, list_sources, scan_file
from drone.data.split import SPLITS, SplitSettings, assign
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing

Row = dict[str, Any]
"""Plain values by name, which travel between processes."""

Mapper = Callable[[Callable[[Row], Row], Sequence[Row], str], list[Row]]
"""Applies a function to rows, in parallel if it can, and gives the results in the same order.

The third argument says in a word what is being done, for a progress bar.
"""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """All that decides what becomes of a raw folder."""

    classes: tuple[str, ...] = CLASSES
    """Classes to look for, in the order of their indices."""

    policy: Policy = "drop-all"
    """A picture in several classes: drop all, keep the first by path, or where most copies are."""

    near_distance: int = DEFAULT_MAX_DISTANCE
    """Bits of 256 by which near duplicates may differ; they share a split. 0: exact hash only."""

    split: SplitSettings = field(default_factory=SplitSettings)
    """Shares and seed of train, validation and test."""

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """How bytes become pixels, the same for training and serving."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) < 2:
            raise ConfigError(
                f"--classes names {', '.join(self.classes) or 'none'}; a classifier needs at "
                f"least two different classes."
            )
        if not 0 <= self.near_distance <= 256:
            raise ConfigError(f"--near-distance is {self.near_distance}; it must be 0 to 256.")


@dataclass(frozen=True)
class Plan:
    """What `apply` would do."""

    frame: pd.DataFrame
    """The manifest: a row for each file, sorted by path."""

    listing: Listing
    settings: PrepareSettings
    fingerprint: str

    @property
    def steps(self) -> pd.DataFrame:
        """Files by step and class; adds up."""
        return steps_table(self.frame, self.settings.classes)

    @property
    def splits(self) -> pd.DataFrame:
        """Kept pictures by split and class."""
        kept = self.frame[self.frame["kept"]]
        table = pd.crosstab(kept["split"], kept["class_name"])
        table = table.reindex(index=list(SPLITS), columns=list(self.settings.classes), fill_value=0)
        table.columns.name = None
        table["total"] = table.sum(axis=1)
        return table

    @property
    def near_groups(self) -> "pd.Series[int]":
        """Sizes of the groups of more than one picture, largest first."""
        sizes = self.frame.loc[self.frame["kept"], "group"].value_counts()
        return sizes[sizes > 1]


def plan(
    roots: Sequence[Path], settings: PrepareSettings, mapper: Mapper, out: Path | None = None
) -> Plan:
    """Looks at every file and decides what becomes of it; writes nothing.

    Args:
        roots: raw folders, each with one subfolder a class.
        settings: what decides.
        mapper: runs the scan.
        out: a data set there keeps its pictures in their splits, if it was split the same way.

    Raises:
        DataError: no folder, an empty class, or too few pictures to share out.
    """
    listing = list_sources(roots, settings.classes)
    scan = functools.partial(_scan_row, settings=settings.preprocessing)
    rows = mapper(scan, [asdict(source) for source in listing.sources], "scanning")
    frame = judge((Record(**row) for row in rows), settings.policy, settings.near_distance)
    previous = _previous_splits(out, settings) if out else {}
    frame = assign(frame, settings.classes, settings.split, settings.near_distance, previous)
    frame["pixel_row"] = np.where(frame["kept"], frame["kept"].cumsum() - 1, -1)
    return Plan(
        frame=frame.drop(columns="problem"),
        listing=listing,
        settings=settings,
        fingerprint=fingerprint(frame, to_dict(settings)),
    )


def _scan_row(row: Row, settings: Preprocessing) -> Row:
    return asdict(scan_file(Source(**row), settings))


def _previous_splits(out: Path, settings: PrepareSettings) -> Mapping[str, str]:
    """Split of each picture of an earlier data set, unless it was grouped or split otherwise."""
    if not is_dataset(out):
        return {}
    earlier = open_dataset(out)
    before, now = earlier.description["settings"], to_dict(settings)
    if any(before[name] != now[name] for name in ("classes", "near_distance", "split")):
        return {}
    kept = earlier.manifest[earlier.manifest["kept"]]
    return dict(zip(kept["md5"], kept["split"], strict=True))


def check_writable(out: Path) -> None:
    """Fails before any work if the data set could not be written.

    Raises:
        DataError: `out` holds something else, or its folder cannot be written.
    """
    if out.exists() and not is_dataset(out) and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists and is not a prepared data set. Give --out a new folder, so that "
            f"nothing of yours is overwritten."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent):
            pass
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}. Choose another --out.") from (
            error
        )


def apply(plan: Plan, out: Path, mapper: Mapper) -> tuple[Dataset, bool]:
    """Writes the planned data set.

    It is built beside `out` and renamed when it is whole. A data set that is there already is
    left alone if it says the same, else replaced; its ledger goes on.

    Returns:
        The data set, and whether anything was written.

    Raises:
        DataError: the disk is full or `out` cannot be written.
    """
    check_writable(out)
    if is_dataset(out) and _says_the_same(open_dataset(out), plan):
        return open_dataset(out), False
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write(plan, out, building, mapper)
        _swap(building, out)
    except OSError as error:
        raise DataError(
            f"{out} could not be written: {error.strerror}. Nothing was changed."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return open_dataset(out), True


def _says_the_same(dataset: Dataset, plan: Plan) -> bool:
    same_data = dataset.fingerprint == plan.fingerprint
    return same_data and dataset.manifest.equals(plan.frame.reset_index(drop=True))


def _write(plan: Plan, out: Path, building: Path, mapper: Mapper) -> None:
    building.chmod(0o755)
    (building / PIXELS_FOLDER).mkdir()
    _pack(plan, building / PIXELS_FOLDER, mapper)
    tables = building / "tables"
    tables.mkdir()
    plan.steps.to_csv(tables / "steps.csv")
    plan.splits.to_csv(tables / "splits.csv")
    duplicate_table(plan.frame).to_csv(tables / "eda_duplicate_list.csv", index=False)
    plan.frame.to_parquet(building / MANIFEST_FILE, index=False)
    _write_ledger(plan, out, building)
    description = {
        "schema": SCHEMA,
        "fingerprint": plan.fingerprint,
        "settings": to_dict(plan.settings),
        "counts": {"steps": _nested(plan.steps), "splits": _nested(plan.splits)},
    }
    (building / DATASET_FILE).write_text(json.dumps(description, indent=2) + "\n", "utf-8")


def _nested(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(step): {str(name): int(count) for name, count in row.items()}
        for step, row in table.iterrows()
    }


def _pack(plan: Plan, folder: Path, mapper: Mapper) -> None:
    kept = plan.frame.loc[plan.frame["kept"], ["root", "path", "class_name"]]
    sources = kept.to_dict("records")
    jobs: list[Row] = [
        {
            "target": str(folder / shard_name(number)),
            "sources": json.dumps(sources[start : start + SHARD_ROWS]),
        }
        for number, start in enumerate(range(0, len(sources), SHARD_ROWS))
    ]
    mapper(functools.partial(_pack_row, settings=plan.settings.preprocessing), jobs, "packing")


def _pack_row(row: Row, settings: Preprocessing) -> Row:
    sources = [Source(**source) for source in json.loads(row["sources"])]
    return {"packed": pack_shard(sources, Path(row["target"]), settings)}


def _write_ledger(plan: Plan, out: Path, building: Path) -> None:
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    by = f"prepare, policy {plan.settings.policy}"
    known = ledger.read(out / ledger.NAME)
    added = ledger.update(known, ledger.decisions(plan.frame, by, when), by, when)
    ledger.append(building / ledger.NAME, [*known, *added])


def _swap(building: Path, out: Path) -> None:
    """Puts the new folder in the old one's place; at no moment is there half a data set."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        out.rename(old / out.name)
        building.rename(out)
        shutil.rmtree(old)
    else:
        building.rename(out)


def map_here(function: Callable[[Row], Row], rows: Sequence[Row], label: str) -> list[Row]:
    """The simplest mapper: one row after the other, in this process."""
    return [function(row) for row in rows]
