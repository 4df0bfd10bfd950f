"""Writes a planned data set, or restores the version before the present one."""

import contextlib
import datetime
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from drone.config import override, to_dict
from drone.data.bins import BIN_SIDES_PX
from drone.data.dataset import (
    CLASSES_FILE,
    DATASET_FILE,
    MANIFEST_FILE,
    PIXELS_FOLDER,
    SCHEMA,
    Dataset,
    is_dataset,
    open_dataset,
)
from drone.data.prepare import history, ledger
from drone.data.prepare.class_source import write_classes
from drone.data.prepare.listing import LeftOut
from drone.data.prepare.original_tables import duplicate_table
from drone.data.prepare.pack import pack_images
from drone.data.prepare.plan import Mapper, PreparePlan, PrepareSettings
from drone.data.prepare.roots import Opener, open_root
from drone.errors import ConfigError, DamagedError, DataError
from drone.files import (
    building_name,
    checksum,
    locked,
    recover_folder,
    replace_folder,
    seal,
)

WriteAudit = Callable[[PreparePlan, Path, Mapper], None]
"""Writes the audit of a plan into the folder of its data set. `curation.audit_page.write_audit`
is the one there is; it is passed in, since curation lies above data."""


@contextlib.contextmanager
def writing(out: Path, notify: Callable[[str], None]) -> Iterator[Path]:
    """Holds the lock of a data set: from reading its ledger to writing it, there is one writer.

    What a writer that was killed has left is put in order first.

    Args:
        out: Folder of the data set.
        notify: Called with what was put in order, in sentences.

    Yields:
        The folder, with links resolved.

    Raises:
        LockedError: Another process is writing the data set.
        DataError: `out` holds something else, or its parent folder is not writable.
    """
    # A link is replaced where it points to, so that it stays a link.
    folder = out.resolve()
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = locked(folder.with_name(f".{folder.name}.lock"), f"The data set {out}")
            # This writes to the parent folder, so a read-only or full disk is found at once.
            stack.enter_context(lock)
            done = [*recover_folder(folder), *ledger.repair(folder / ledger.LEDGER_FILE)]
        except OSError as error:
            raise DataError(
                f"{out} cannot be written: {error.strerror}. Choose another --out."
            ) from error
        for sentence in done:
            notify(sentence)
        check_content(folder)
        yield folder


def check_content(folder: Path) -> None:
    """Fails if the folder holds something else than a data set that this version can update.

    Raises:
        DataError: It does.
    """
    if is_dataset(folder):
        with contextlib.suppress(DamagedError):  # Which is mended.
            open_dataset(folder)
        return
    # With a ledger it is a data set, whatever else of it is lost: decisions cannot be made anew.
    is_ours = (folder / ledger.LEDGER_FILE).is_file()
    if folder.exists() and not is_ours and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} exists and is not a prepared data set. Give a new folder as --out, so that "
            f"nothing of yours is overwritten."
        )


def write_dataset(
    plan: PreparePlan,
    out: Path,
    mapper: Mapper,
    *,
    bins: bool = False,
    write_audit: WriteAudit | None = None,
    notify: Callable[[str], None] = lambda sentence: None,
) -> tuple[Dataset, bool]:
    """Writes the planned data set; the caller holds its lock (`writing`).

    It is built beside `out` and takes its place when it is complete. An existing data set with the
    same content is left alone, unless a file is damaged; then it is packed again. Another one is
    replaced, and its ledger and history are carried over.

    Args:
        plan: The data set to write.
        out: Its folder.
        mapper: Runs the packing.
        bins: Packs images at the sides of their bins too. A data set that has bins keeps them
            regardless. They hold the same images, so the fingerprint does not change.
        write_audit: Writes the audit; None leaves it out.
        notify: Called with each damaged file of the data set before it is packed again.

    Returns:
        The data set, and whether anything was written.

    Raises:
        ConfigError: Bins are requested and the images are not packed at the smallest bin's side.
        DataError: The disk is full, `out` is not writable, or a raw file has changed.
    """
    check_content(out)
    existing = _open_existing(out)
    for file in existing.damage:
        notify(f"Mending the data set: {file} is missing or not what was written.")
    # Runs that trained on the bins must still find them after an update without --bins.
    bins = bins or existing.has_bins
    if bins and plan.settings.preprocessing.side_px != BIN_SIDES_PX[0]:
        raise ConfigError(
            f"--bins needs --preprocessing.side-px {BIN_SIDES_PX[0]}, the smallest bin; it is "
            f"{plan.settings.preprocessing.side_px}. A data set that has bins keeps them: give "
            f"another --out for one without."
        )
    ledger_file = out / ledger.LEDGER_FILE
    lines = ledger.read(ledger_file)
    is_unchanged = existing.dataset is not None and _is_unchanged(existing.dataset, plan, bins)
    if is_unchanged and not existing.damage:
        if plan.new_decisions:  # A decision to keep changes no image and is recorded all the same.
            ledger.append(ledger_file, plan.new_decisions)
        return open_dataset(out), bool(plan.new_decisions)
    now = _now()
    by = f"prepare, policy {plan.settings.policy}"
    verdicts = ledger.drop_decisions(plan.manifest, by, now)
    lines = [*lines, *plan.new_decisions, *ledger.verdict_changes(lines, verdicts, by, now)]
    build = _Build(plan, mapper, bins, write_audit)
    # A version that is only mended is no earlier version.
    add_present = existing.dataset is not None and not is_unchanged
    _replace(
        build,
        out,
        lines,
        lambda building: history.copy_history(out, building, add_present=add_present),
    )
    return open_dataset(out), True


def undo_last(
    out: Path,
    mapper: Mapper,
    opener: Opener = open_root,
    *,
    write_audit: WriteAudit | None = None,
) -> Dataset:
    """Restores the version before the present one and retracts decisions by hand made since.

    Its images are packed from the raw files again.

    Args:
        out: Folder of the data set.
        mapper: Runs the packing.
        opener: Opens the raw folders.
        write_audit: Writes the audit; None leaves it out.

    Raises:
        DataError: There is no version before, a raw file has changed or is gone, or `out` is not
            writable.
    """
    open_dataset(out)  # Raises if there is none.
    earlier = history.versions(out)
    if not earlier:
        raise DataError(f"{out} has no version before this one: nothing to undo.")
    version = earlier[-1]
    dataset = version.dataset
    lines = ledger.read(out / ledger.LEDGER_FILE)
    now = _now()
    verdicts = ledger.drop_decisions(dataset.manifest, "undo", now)
    retractions = ledger.retractions(lines, version.ledger_lines, "undo", now)
    changes = ledger.verdict_changes(lines, verdicts, "undo", now)
    plan = PreparePlan(
        manifest=dataset.manifest,
        left_out=tuple(LeftOut(**item) for item in dataset.description["left_out"]),
        settings=override(PrepareSettings(), dataset.description["settings"], str(out)),
        classes=dataset.classes,
        fingerprint=dataset.fingerprint,
        new_decisions=(),
        opener=opener,
    )
    _replace(
        _Build(plan, mapper, dataset.has_bins, write_audit),
        out,
        [*lines, *retractions, *changes],
        lambda building: history.copy_history(out, building, drop_last=True),
    )
    return open_dataset(out)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class _Existing:
    """The data set that is about to be updated."""

    dataset: Dataset | None
    """None if there is none, or if its description or manifest is damaged."""

    has_bins: bool

    damage: Sequence[Path]
    """Files that are missing or not what was written."""


def _open_existing(out: Path) -> _Existing:
    if not (out / ledger.LEDGER_FILE).is_file() and not is_dataset(out):
        return _Existing(None, has_bins=False, damage=())
    try:
        # A ledger without a description: that one was lost.
        dataset = open_dataset(out) if is_dataset(out) else None
    except DamagedError:
        dataset = None
    if dataset is None:
        # Each bin has a folder, named by its side.
        has_bins = any((out / PIXELS_FOLDER).glob("[0-9]*"))
        return _Existing(None, has_bins, [out / DATASET_FILE])
    damage = list(dataset.damaged_files())
    is_readable = out / MANIFEST_FILE not in damage
    return _Existing(dataset if is_readable else None, dataset.has_bins, damage)


def _is_unchanged(dataset: Dataset, plan: PreparePlan, bins: bool) -> bool:
    same_data = dataset.fingerprint == plan.fingerprint and dataset.has_bins == bins
    return same_data and dataset.manifest.equals(plan.manifest.reset_index(drop=True))


@dataclass(frozen=True)
class _Build:
    """What to build and with which tools."""

    plan: PreparePlan
    mapper: Mapper
    bins: bool
    write_audit: WriteAudit | None


def _replace(
    build: _Build,
    out: Path,
    ledger_lines: Sequence[ledger.Decision],
    copy_history: Callable[[Path], None],
) -> None:
    """Builds the data set beside `out` and moves it there when it is complete."""
    # In the same file system, so that it takes its place by a rename.
    building = building_name(out)
    try:
        building.mkdir(parents=True)
        _write_files(build, building)
        ledger.append(building / ledger.LEDGER_FILE, ledger_lines)
        copy_history(building)
        replace_folder(building, out)
    except OSError as error:
        raise DataError(
            f"{out} could not be written: {error.strerror or error}. Nothing was changed. Free "
            f"some space or choose another --out."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_files(build: _Build, building: Path) -> None:
    plan = build.plan
    (building / PIXELS_FOLDER).mkdir()
    checksums = pack_images(plan, building / PIXELS_FOLDER, build.mapper, bins=build.bins)
    tables = building / "tables"
    tables.mkdir()
    plan.steps.to_csv(tables / "steps.csv")
    plan.splits.to_csv(tables / "splits.csv")
    if plan.kinds:
        plan.negatives.to_csv(tables / "negatives.csv")
    duplicates = duplicate_table(plan.manifest, plan.settings.policy)
    duplicates.to_csv(tables / "eda_duplicate_list.csv", index=False)
    plan.manifest.to_parquet(building / MANIFEST_FILE, index=False)
    checksums[building / MANIFEST_FILE] = checksum(building / MANIFEST_FILE)
    write_classes(plan.classes, building / CLASSES_FILE)
    description = {
        "fingerprint": plan.fingerprint,
        "classes": to_dict(plan.classes),
        "settings": to_dict(plan.settings),
        "counts": {
            "steps": _nested(plan.steps),
            "splits": _nested(plan.splits),
            "negatives": _nested(plan.negatives),
        },
        "left_out": [asdict(item) for item in plan.left_out],
        "bins": build.bins,
        "checksums": {
            file.relative_to(building).as_posix(): value
            for file, value in sorted(checksums.items())
        },
    }
    (building / DATASET_FILE).write_bytes(seal(description, SCHEMA))
    if build.write_audit:
        build.write_audit(plan, building, build.mapper)


def _nested(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(step): {str(name): int(count) for name, count in row.items()}
        for step, row in table.iterrows()
    }
