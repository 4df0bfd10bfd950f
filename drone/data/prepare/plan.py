"""Plans a data set: scans raw folders and decides on every file; `write` carries the plan out."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drone.commands import command
from drone.config import differing, flatten, to_dict
from drone.data.dataset import Dataset, is_dataset, open_dataset
from drone.data.prepare import history, ledger
from drone.data.prepare.class_names import check_classes
from drone.data.prepare.class_source import classes_argument
from drone.data.prepare.clean import NearDuplicates, assign_verdicts, steps_table
from drone.data.prepare.fingerprint import fingerprint
from drone.data.prepare.listing import LeftOut, RawFile
from drone.data.prepare.near_duplicates import NEAR_DUPLICATE_THRESHOLD
from drone.data.prepare.negatives import list_all_files
from drone.data.prepare.original_tables import original_counts
from drone.data.prepare.perceptual_hash import HASH_BITS
from drone.data.prepare.roots import Opener, open_root
from drone.data.prepare.scan import ScanRecord, scan_file
from drone.data.prepare.scan_cache import ScanCache
from drone.data.prepare.split import SplitSettings, assign_splits, splits_table
from drone.data.prepare.verdicts import Policy, gets_split
from drone.errors import ConfigError, DamagedError
from drone.labels import CLASSES, NONE, ClassSet
from drone.serving.preprocess import Preprocessing

_DECIDE_SPLITS = ("near_duplicate_threshold", "keep_split", "split")
"""Settings that decide the split of an image; others change only which images are kept."""

Row = dict[str, Any]
"""Plain values by name, which can be sent between processes."""

Mapper = Callable[[Callable[[Row], Row], Sequence[Row], str], list[Row]]
"""Applies a function to rows, possibly in parallel, and returns the results in the same order.

The third argument labels a progress bar ("scanning", "packing", "audit").
"""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """Everything that decides which data set raw folders become."""

    policy: Policy = "drop-all"
    """Policy for an image in several classes: drop-all copies, keep the first by path, keep the
    class with the majority of copies, or seed for the original project's rules."""

    near_duplicates: NearDuplicates = "keep"
    """Whether to keep all near duplicates, in one split, or drop all but the largest of a group."""

    near_duplicate_threshold: int = NEAR_DUPLICATE_THRESHOLD
    """Maximum distance of the perceptual hashes of near duplicates, in bits of 256; near
    duplicates share a split. 0 requires equal hashes."""

    keep_split: bool = False
    """Keep images of folders named train, validation (or val) and test in these splits. Near
    duplicates may then be in two splits, which is reported."""

    split: SplitSettings = field(default_factory=SplitSettings)
    """Shares and seed of train, validation and test."""

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """How bytes become pixels, the same for training and serving."""

    def __post_init__(self) -> None:
        if not 0 <= self.near_duplicate_threshold <= HASH_BITS:
            raise ConfigError(
                f"--near-duplicate-threshold is {self.near_duplicate_threshold}; it must be 0 to "
                f"{HASH_BITS}."
            )


@dataclass(frozen=True)
class PreparePlan:
    """A data set that has been decided on but not written."""

    manifest: pd.DataFrame
    """One row per file, sorted by path, negatives last."""

    left_out: tuple[LeftOut, ...]
    """Files that are in no row, by folder."""

    settings: PrepareSettings
    classes: ClassSet
    fingerprint: str

    new_decisions: tuple[ledger.Decision, ...]
    """The user's decisions that the ledger does not hold yet."""

    opener: Opener
    """Opens the raw folders."""

    @property
    def steps(self) -> pd.DataFrame:
        """Files by step and class; see `clean.steps_table`."""
        return steps_table(self.manifest, self.labels)

    @property
    def splits(self) -> pd.DataFrame:
        """Kept images by split and class, with a column "total"."""
        return splits_table(self.manifest, self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes and, if there are negatives, `labels.NONE`."""
        return (*self.classes, NONE) if self.kinds else self.classes.names

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of negatives, sorted."""
        return tuple(sorted(set(self.manifest["kind"]) - {""}))

    @property
    def negatives(self) -> pd.DataFrame:
        """Negatives by kind (row) and step, then by split; the last row is their "total".

        It has the counts of the column `labels.NONE` in `steps` and `splits`.
        """
        rows = self.manifest[self.manifest["kind"] != ""]
        is_negative = rows["class_name"] == NONE
        # One that the user relabelled has left its kind for a class.
        names = rows["kind"].where(is_negative, rows["class_name"])
        by_kind = rows.assign(given_class=rows["kind"], class_name=names)
        tables = steps_table(by_kind, self.kinds), splits_table(by_kind, self.kinds)
        return pd.concat(tables).T.rename_axis("kind")

    @property
    def original_counts(self) -> pd.DataFrame:
        """The counts that the original project would have given, by class."""
        return original_counts(self.manifest, self.classes)

    @property
    def near_group_sizes(self) -> "pd.Series[int]":
        """Sizes of the groups of more than one kept image, largest first."""
        sizes = self.manifest.loc[self.manifest["kept"], "group"].value_counts()
        return sizes[sizes > 1]

    @property
    def straddling(self) -> pd.DataFrame:
        """Images of groups that are in several splits, by class and split; see `keep_split`."""
        kept = self.manifest[self.manifest["kept"]]
        kept = kept[kept.groupby("group")["split"].transform("nunique") > 1]
        return pd.crosstab(kept["class_name"], kept["split"])


def plan_dataset(
    roots: Sequence[str | Path],
    settings: PrepareSettings,
    mapper: Mapper,
    out: Path | None = None,
    *,
    classes: ClassSet = CLASSES,
    negatives: Sequence[str | Path] = (),
    decisions: Sequence[ledger.Decision] = (),
    cache_folder: Path | None = None,
    rescan: bool = False,
    opener: Opener = open_root,
) -> PreparePlan:
    """Scans every file and decides what becomes of it; writes no data set.

    Args:
        roots: Raw folders, archives or URIs, each with one folder per class.
        settings: What decides.
        mapper: Runs the scan.
        out: Data set to update. Its images stay in their splits, if it was split by the same
            settings, and the user's decisions in its ledger stay in force.
        classes: Classes to look for.
        negatives: Folders, archives or URIs of images that show none of the classes, each with one
            folder per kind.
        decisions: The user's decisions since, as `ledger.read_by_hand` gives them.
        cache_folder: Folder of the scan cache, so that unchanged files are not read again.
        rescan: Reads them all the same, and stores what they are now.
        opener: Opens a root by its name.

    Raises:
        ConfigError: A class cannot be called so.
        DataError: A root is missing, a class is empty, or there are too few images to split.
    """
    check_classes(classes)
    listing = list_all_files(roots, negatives, classes, opener)
    cache = ScanCache(cache_folder, settings.preprocessing) if cache_folder else None
    cached = cache.lookup(listing.files) if cache and not rescan else {}
    records = _scan(listing.files, settings.preprocessing, mapper, cached, opener)
    # All records, since storing replaces those of a root.
    if cache and len(cached) < len(records):
        cache.store(dict(zip(listing.files, records, strict=True)))
    previous = _previous_splits(out, settings) if out else {}
    lines = ledger.read(out / ledger.LEDGER_FILE) if out else []
    contents = {record.md5: record.content for record in records}
    new_decisions = ledger.new_by_hand(lines, decisions, contents)
    threshold = settings.near_duplicate_threshold
    frame = assign_verdicts(
        records,
        settings.policy,
        threshold,
        near_duplicates=settings.near_duplicates,
        decisions=_in_force([*lines, *new_decisions], classes),
        previous=previous.keys(),
    )
    # The splits come last: they are balanced over what the verdicts keep.
    frame = assign_splits(
        frame,
        classes,
        settings.split,
        threshold,
        previous,
        keep_split=settings.keep_split,
    )
    # Images dropped by hand are packed too: evaluate reports the accuracy before the review.
    in_split = gets_split(frame)
    # In the order of the manifest, so that packing a version again gives the same rows.
    frame["pixel_row"] = np.where(in_split, in_split.cumsum() - 1, -1)
    return PreparePlan(
        manifest=frame.drop(columns="problem"),
        left_out=tuple(listing.left_out),
        settings=settings,
        classes=classes,
        fingerprint=fingerprint(frame, {**to_dict(settings), "classes": to_dict(classes)}),
        new_decisions=tuple(new_decisions),
        opener=opener,
    )


def _in_force(lines: Sequence[ledger.Decision], classes: ClassSet) -> dict[str, ledger.Decision]:
    """Returns the user's decisions in force, without those for a class that there is no more."""
    return {
        md5: decision
        for md5, decision in ledger.by_hand(lines).items()
        if decision.action != "relabel" or decision.class_name in (*classes, NONE)
    }


def command_for(dataset: Dataset, **flags: object) -> str:
    """Returns the command that prepares a data set again: the same raw folders and settings.

    Args:
        dataset: An existing data set.
        flags: Further flags, as `commands.command` takes them; they replace its settings.
    """
    settings = flatten(differing(dataset.description["settings"], to_dict(PrepareSettings())))
    is_negative = dataset.manifest["given_class"] == NONE
    raw, negatives = (
        list(dict.fromkeys(dataset.manifest.loc[rows, "root"]))
        for rows in (~is_negative, is_negative)
    )
    roots = {
        "raw": raw,
        "negatives": negatives or None,
        "classes": classes_argument(dataset),
    }
    return command("prepare", **roots, out=dataset.folder, **{**settings, **flags})


def _scan(
    files: Sequence[RawFile],
    settings: Preprocessing,
    mapper: Mapper,
    cached: Mapping[RawFile, ScanRecord],
    opener: Opener,
) -> list[ScanRecord]:
    records = dict(cached)
    new = [file for file in files if file not in records]
    scan_row = functools.partial(_scan_row, settings=settings, opener=opener)
    rows = mapper(scan_row, [asdict(file) for file in new], "scanning") if new else []
    records |= {file: ScanRecord(**row) for file, row in zip(new, rows, strict=True)}
    return [records[file] for file in files]


def _scan_row(row: Row, settings: Preprocessing, opener: Opener) -> Row:
    return asdict(scan_file(RawFile(**row), settings, opener))


def _previous_splits(out: Path, settings: PrepareSettings) -> Mapping[str, str]:
    """Returns the splits of an earlier data set by content; none if it was split differently.

    If it is damaged, the newest earlier version that is not takes its place.
    """
    earlier = newest_intact(out)
    if earlier is None:
        return {}
    before, manifest = earlier.description["settings"], earlier.manifest
    now = to_dict(settings)
    if any(before[name] != now[name] for name in _DECIDE_SPLITS):
        return {}
    assigned = manifest[manifest["split"] != ""]
    return dict(zip(assigned["content"], assigned["split"], strict=True))


def newest_intact(out: Path) -> Dataset | None:
    """Returns a data set or, if it is damaged, its newest version that is not; None without one."""
    for folder in (out, *(version.folder for version in reversed(history.versions(out)))):
        if not is_dataset(folder):
            continue
        with contextlib.suppress(DamagedError):
            dataset = open_dataset(folder)
            _ = dataset.manifest  # Read and checked here.
            return dataset
    return None


def map_sequentially(function: Callable[[Row], Row], rows: Sequence[Row], label: str) -> list[Row]:
    """The simplest mapper: one row after the other, in this process, without a progress bar."""
    return [function(row) for row in rows]
