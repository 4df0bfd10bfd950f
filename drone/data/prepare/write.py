"""Writes a planned data set, or restores the version before the present one."""

import datetime
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from drone.config import override, to_dict
from drone.data.bins import BIN_SIDES_PX
from drone.data.dataset import (
    DATASET_FILE,
    MANIFEST_FILE,
    PIXELS_FOLDER,
    SCHEMA,
    Dataset,
    is_dataset,
    open_dataset,
)
from drone.data.prepare import history, ledger
from drone.data.prepare.original_tables import duplicate_table
from drone.data.prepare.pack import pack_images
from drone.data.prepare.plan import Mapper, PreparePlan, PrepareSettings
from drone.data.prepare.roots import Opener, open_root
from drone.errors import ConfigError, DataError

WriteAudit = Callable[[PreparePlan, Path, Mapper], None]
"""Writes the audit of a plan into the folder of its data set. `curation.audit_page.write_audit`
is the one there is; it is passed in, since curation lies above data."""


def check_writable(out: Path) -> None:
    """Fails before any work is done if the data set could not be written.

    Raises:
        DataError: `out` holds something else, or its parent folder is not writable.
    """
    if out.exists() and not is_dataset(out) and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists and is not a prepared data set. Give a new folder as --out, so that "
            f"nothing of yours is overwritten."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Tried out, since permissions do not show a read-only mount or a full disk.
        with tempfile.TemporaryDirectory(dir=out.parent):
            pass
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}. Choose another --out.") from (
            error
        )


def write_dataset(
    plan: PreparePlan,
    out: Path,
    mapper: Mapper,
    *,
    bins: bool = False,
    write_audit: WriteAudit | None = None,
) -> tuple[Dataset, bool]:
    """Writes the planned data set.

    It is built beside `out` and renamed when it is complete. An existing data set with the same
    content is left alone; another one is replaced, and its ledger and history are carried over.

    Args:
        plan: The data set to write.
        out: Its folder.
        mapper: Runs the packing.
        bins: Packs images at the sides of their bins too. A data set that has bins keeps them
            regardless. They hold the same images, so the fingerprint does not change.
        write_audit: Writes the audit; None leaves it out.

    Returns:
        The data set, and whether anything was written.

    Raises:
        ConfigError: Bins are requested and the images are not packed at the smallest bin's side.
        DataError: The disk is full, `out` is not writable, or a raw file has changed.
    """
    check_writable(out)
    # Runs that trained on the bins must still find them after an update without --bins.
    bins = bins or (is_dataset(out) and open_dataset(out).has_bins)
    if bins and plan.settings.preprocessing.side_px != BIN_SIDES_PX[0]:
        raise ConfigError(
            f"--bins needs --preprocessing.side-px {BIN_SIDES_PX[0]}, the smallest bin; it is "
            f"{plan.settings.preprocessing.side_px}. A data set that has bins keeps them: give "
            f"another --out for one without."
        )
    ledger_file = out / ledger.LEDGER_FILE
    lines = ledger.read(ledger_file)
    if is_dataset(out) and _is_unchanged(open_dataset(out), plan, bins):
        if plan.new_decisions:  # A decision to keep changes no image and is recorded all the same.
            ledger.append(ledger_file, plan.new_decisions)
        return open_dataset(out), bool(plan.new_decisions)
    now = _now()
    by = f"prepare, policy {plan.settings.policy}"
    verdicts = ledger.drop_decisions(plan.manifest, by, now)
    lines = [*lines, *plan.new_decisions, *ledger.verdict_changes(lines, verdicts, by, now)]
    build = _Build(plan, mapper, bins, write_audit)
    _replace(build, out, lines, lambda building: history.copy_history(out, building))
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
        unknown_folders=tuple(dataset.description["unknown_folders"]),
        settings=override(PrepareSettings(), dataset.description["settings"], str(out)),
        fingerprint=dataset.fingerprint,
        new_decisions=(),
        opener=opener,
    )
    _replace(
        _Build(plan, mapper, dataset.has_bins, write_audit),
        out,
        [*lines, *retractions, *changes],
        lambda building: history.copy_history(out, building, without_last=True),
    )
    return open_dataset(out)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


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
    # In the same file system, so that the final rename is atomic.
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        building.chmod(0o755)  # mkdtemp gives 0700, and others may read the data set.
        _write_files(build, building)
        ledger.append(building / ledger.LEDGER_FILE, ledger_lines)
        copy_history(building)
        _swap(building, out)
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
    pack_images(plan, building / PIXELS_FOLDER, build.mapper, bins=build.bins)
    tables = building / "tables"
    tables.mkdir()
    plan.steps.to_csv(tables / "steps.csv")
    plan.splits.to_csv(tables / "splits.csv")
    duplicates = duplicate_table(plan.manifest, plan.settings.policy)
    duplicates.to_csv(tables / "eda_duplicate_list.csv", index=False)
    plan.manifest.to_parquet(building / MANIFEST_FILE, index=False)
    description = {
        "schema": SCHEMA,
        "fingerprint": plan.fingerprint,
        "settings": to_dict(plan.settings),
        "counts": {"steps": _nested(plan.steps), "splits": _nested(plan.splits)},
        "unknown_folders": list(plan.unknown_folders),
        "bins": build.bins,
    }
    (building / DATASET_FILE).write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    if build.write_audit:
        build.write_audit(plan, building, build.mapper)


def _nested(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(step): {str(name): int(count) for name, count in row.items()}
        for step, row in table.iterrows()
    }


def _swap(building: Path, out: Path) -> None:
    """Puts the new folder in the place of the old one, which is removed only afterwards."""
    if out.exists():
        # rename() does not replace a folder that has files in it.
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        out.rename(old / out.name)
        building.rename(out)
        shutil.rmtree(old)
    else:
        building.rename(out)
