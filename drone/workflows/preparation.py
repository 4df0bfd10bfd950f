"""Prepares a data set from raw folders, restores its last version, or compares two of them."""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from drone.commands import quoted
from drone.curation.audit_page import write_audit
from drone.data.bins import bin_sides
from drone.data.dataset import Dataset
from drone.data.prepare import history, ledger
from drone.data.prepare.class_source import read_classes
from drone.data.prepare.plan import (
    PreparePlan,
    PrepareSettings,
    newest_intact,
    plan_dataset,
)
from drone.data.prepare.write import check_content, undo_last, write_dataset, writing
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES, NONE, ClassSet
from drone.names import listed
from drone.storage import dataset_cache
from drone.storage.raw_roots import open_root
from drone.workflows import mapping, served_images
from drone.workflows.requests import PrepareRequest


@dataclass(frozen=True)
class Preparation:
    """A planned data set, on its way to be written."""

    plan: PreparePlan

    decisions: Sequence[ledger.Decision]
    """The user's decisions that were passed in, those that are known already included."""

    dropped_served: Collection[str] = ()
    """md5 of served images that were dropped, which are in no raw folder."""

    absent_served: Collection[str] = ()
    """md5 of images that were decided to show none of the classes, and are no longer stored."""

    @property
    def num_decided(self) -> int:
        """Number of images that the decisions are on."""
        return len(self.decisions) + len(self.absent_served)

    @property
    def num_missing(self) -> int:
        """Number of decided images that are in none of the raw folders, but should be."""
        decided = {*(decision.md5 for decision in self.decisions), *self.absent_served}
        return len(decided - set(self.plan.manifest["md5"]) - set(self.dropped_served))

    @property
    def bins(self) -> pd.DataFrame:
        """Images and GB of packed pixels by bin."""
        # Only images of the data set have pixels; duplicates and rejected files have no row.
        packed = self.plan.manifest[self.plan.manifest["pixel_row"] >= 0]
        counts = pd.Series(bin_sides(packed)).value_counts().sort_index()
        size_gb = counts * counts.index.to_numpy() ** 2 * 3 / 1e9
        return pd.DataFrame({"images": counts, "GB": size_gb})


def prepare(
    request: PrepareRequest,
    settings: PrepareSettings = PrepareSettings(),  # noqa: B008  Frozen.
    show_plan: Callable[[Preparation], None] = lambda preparation: None,
    notify: Callable[[str], None] = lambda sentence: None,
) -> tuple[Preparation, bool]:
    """Plans a data set and, unless it is a dry run, writes it.

    Args:
        request: Raw folders, data set and decisions.
        settings: What decides which data set they become.
        show_plan: Called with the plan before anything is written.
        notify: Called with what a run that was killed had left and this one has put in order.

    Returns:
        The preparation, and whether anything was written.

    Raises:
        DroneError: Anything that the user can fix.
    """
    classes = _classes(request)
    with (
        _opened(request, notify) as out,
        served_images.opened(request, classes, out, notify) as served,
        mapping.mapper() as mapper,
    ):
        plan = plan_dataset(
            (*served_images.without_served(request.raw, out), *served.raw),
            settings,
            mapper,
            out,
            classes=classes,
            negatives=(*served_images.without_served(request.negatives, out), *served.negatives),
            decisions=served.decisions,
            cache_folder=dataset_cache.cache_folder("scans"),
            rescan=request.rescan,
            opener=open_root,
        )
        _check_none(request, plan, served.absent)
        preparation = Preparation(plan, served.decisions, served.dropped, served.absent)
        _notify_of_lost_negatives(out, plan, notify)
        show_plan(preparation)
        if request.dry_run:
            return preparation, False
        _, written = write_dataset(
            plan, out, mapper, bins=request.bins, write_audit=write_audit, notify=notify
        )
    return preparation, written


def _classes(request: PrepareRequest) -> ClassSet:
    if request.classes:
        return read_classes(request.classes, request.raw, request.negatives, open_root)
    before = newest_intact(request.out) if request.out else None
    return before.classes if before else CLASSES


def _check_none(request: PrepareRequest, plan: PreparePlan, absent: Collection[str]) -> None:
    """Fails if images that were decided to be of no class are those of a raw folder.

    Those that are nowhere count as missing.
    """
    paths = plan.manifest.loc[plan.manifest["md5"].isin(list(absent)), "path"].tolist()
    if paths:
        raise DataError(
            f"{request.decisions} relabels {listed(paths)} to {NONE!r}, which is possible for "
            f"served images only. Move these files to a folder of --negatives instead."
        )


def _notify_of_lost_negatives(out: Path, plan: PreparePlan, notify: Callable[[str], None]) -> None:
    """Says so where a run without --negatives leaves out those that the data set has."""
    before = newest_intact(out)
    if plan.kinds or before is None:
        return
    negatives = before.manifest[before.manifest["kind"] != ""]
    if len(negatives):
        roots = " ".join(quoted(root) for root in dict.fromkeys(negatives["root"]))
        notify(
            f"{out} has {len(negatives)} files of negatives, which this run leaves out. To keep "
            f"them, add: --negatives {roots}"
        )


@contextlib.contextmanager
def _opened(request: PrepareRequest, notify: Callable[[str], None]) -> Iterator[Path]:
    """Yields the folder of the data set; locked from reading the ledger to writing, if it will.

    What can be refused is refused here, before the scan, which takes minutes.
    """
    if request.out is None:
        raise ConfigError("--out is missing: name the folder of the data set.")
    if request.dry_run:
        check_content(request.out)
        yield request.out
    else:
        with writing(request.out, notify) as folder:
            yield folder


def undo(out: Path, notify: Callable[[str], None] = lambda sentence: None) -> Dataset:
    """Restores the version of a data set before the present one.

    Args:
        out: Folder of the data set.
        notify: As for `prepare`.

    Raises:
        DataError: There is no earlier version, or its raw files are gone.
    """
    with writing(out, notify) as folder, mapping.mapper() as mapper:
        return undo_last(folder, mapper, open_root, write_audit=write_audit)


@dataclass(frozen=True)
class Comparison:
    """The differences between two data sets."""

    fingerprints: tuple[str, str]

    changes: pd.DataFrame
    """As `history.diff` returns it."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of files by kind of change."""
        return dict(Counter(map(str, self.changes["change"])).most_common())


def compare(first: str, second: str) -> Comparison:
    """Compares two data sets, each a folder or FOLDER@FINGERPRINT for an earlier version.

    Raises:
        DataError: One of them does not exist.
    """
    old, new = history.open_version(first), history.open_version(second)
    return Comparison((old.fingerprint, new.fingerprint), history.diff(old, new))
