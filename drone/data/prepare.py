"""From raw folders to the plan of a data set; `writing` applies it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drone.config import to_dict
from drone.data import ledger
from drone.data.clean import (
    Near,
    Policy,
    judge,
    seed_counts,
    shared_out,
    steps_table,
)
from drone.data.dataset import fingerprint, is_dataset, open_dataset
from drone.data.hashing import DEFAULT_MAX_DISTANCE
from drone.data.roots import Opener, open_root
from drone.data.scan import Record, Source, list_sources, scan_file
from drone.data.scan_cache import ScanCache
from drone.data.split import SPLITS, SplitSettings, assign
from drone.errors import ConfigError
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
    """A picture in several classes: drop all, keep the first by path, or where most copies are;
    seed decides on names and copies as the original project did."""

    near: Near = "keep"
    """Near duplicates: keep all in one split, or drop all but the largest of each group."""

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

    unknown_folders: tuple[str, ...]
    """Folders whose names mean no class."""

    settings: PrepareSettings
    fingerprint: str

    by_hand: tuple[ledger.Decision, ...]
    """Decisions of a person that are new to the ledger."""

    opener: Opener
    """Opens the raw folders."""

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
    def seed_counts(self) -> pd.DataFrame:
        """What the original project would have counted, by class."""
        return seed_counts(self.frame, self.settings.classes)

    @property
    def near_groups(self) -> "pd.Series[int]":
        """Sizes of the groups of more than one picture, largest first."""
        sizes = self.frame.loc[self.frame["kept"], "group"].value_counts()
        return sizes[sizes > 1]


def plan(
    roots: Sequence[str | Path],
    settings: PrepareSettings,
    mapper: Mapper,
    out: Path | None = None,
    *,
    by_hand: Sequence[ledger.Decision] = (),
    cache: Path | None = None,
    opener: Opener = open_root,
) -> Plan:
    """Looks at every file and decides what becomes of it; writes no data set.

    Args:
        roots: raw folders, archives or URIs, each with one folder a class.
        settings: what decides.
        mapper: runs the scan.
        out: a data set there keeps its pictures in their splits, if it was split the same way,
            and what a person decided on them.
        by_hand: what a person decided since.
        cache: folder for what was seen, so that an unchanged file is not read again.
        opener: opens a root by its name.

    Raises:
        DataError: no folder, an empty class, or too few pictures to share out.
    """
    listing = list_sources(roots, settings.classes, opener=opener)
    records = _scan(listing.sources, settings.preprocessing, mapper, cache, opener)
    previous = _previous_splits(out, settings) if out else {}
    told = ledger.read(out / ledger.NAME) if out else []
    added = ledger.new_by_hand(told, by_hand)
    frame = judge(
        records,
        settings.policy,
        settings.near_distance,
        near=settings.near,
        by_hand=ledger.by_hand([*told, *added]),
        known=previous.keys(),
    )
    frame = assign(frame, settings.classes, settings.split, settings.near_distance, previous)
    shared = shared_out(frame)
    frame["pixel_row"] = np.where(shared, shared.cumsum() - 1, -1)
    return Plan(
        frame=frame.drop(columns="problem"),
        unknown_folders=listing.unknown_folders,
        settings=settings,
        fingerprint=fingerprint(frame, to_dict(settings)),
        by_hand=tuple(added),
        opener=opener,
    )


def _scan(
    sources: Sequence[Source],
    settings: Preprocessing,
    mapper: Mapper,
    cache_folder: Path | None,
    opener: Opener,
) -> list[Record]:
    cache = ScanCache(cache_folder, settings) if cache_folder else None
    records = cache.known(sources) if cache else {}
    new = [source for source in sources if source not in records]
    look = functools.partial(_scan_row, settings=settings, opener=opener)
    rows = mapper(look, [asdict(source) for source in new], "scanning") if new else []
    records |= {source: Record(**row) for source, row in zip(new, rows, strict=True)}
    seen = [(source, records[source]) for source in sources]
    if cache and new:
        cache.keep(seen)
    return [record for _, record in seen]


def _scan_row(row: Row, settings: Preprocessing, opener: Opener) -> Row:
    return asdict(scan_file(Source(**row), settings, opener))


def _previous_splits(out: Path, settings: PrepareSettings) -> Mapping[str, str]:
    """Split of each picture of an earlier data set, unless it was grouped or split otherwise."""
    if not is_dataset(out):
        return {}
    earlier = open_dataset(out)
    before, now = earlier.description["settings"], to_dict(settings)
    if any(before[name] != now[name] for name in ("classes", "near_distance", "split")):
        return {}
    placed = earlier.manifest[earlier.manifest["split"] != ""]
    return dict(zip(placed["md5"], placed["split"], strict=True))


def map_here(function: Callable[[Row], Row], rows: Sequence[Row], label: str) -> list[Row]:
    """The simplest mapper: one row after the other, in this process."""
    return [function(row) for row in rows]
