"""Writes a planned data set, and goes back to the version before."""

import datetime
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from drone.config import override, to_dict
from drone.data import audit_page, history, ledger
from drone.data.bins import BIN_SIDES_PX, sides_of
from drone.data.clean import duplicate_table
from drone.data.dataset import (
    DATASET_FILE,
    MANIFEST_FILE,
    PIXELS_FOLDER,
    SCHEMA,
    Dataset,
    is_dataset,
    open_dataset,
)
from drone.data.pixels import (
    SHARD_ROWS,
    Picture,
    bin_folder,
    bin_rows,
    pack_shard,
    shard_name,
)
from drone.data.prepare import Mapper, Plan, PrepareSettings, Row
from drone.data.roots import Opener, open_root
from drone.errors import ConfigError, DataError
from drone.serving.preprocess import Preprocessing


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


def apply(plan: Plan, out: Path, mapper: Mapper, *, bins: bool = False) -> tuple[Dataset, bool]:
    """Writes the planned data set.

    It is built beside `out` and renamed when it is whole. A data set that is there already is
    left alone if it says the same, else replaced; its ledger and its history go on.

    Args:
        plan: what to write.
        out: the folder.
        mapper: runs the packing.
        bins: packs the pictures at the sides of their bins too, as it is always done for a data
            set that has them. They are the same pictures, so the fingerprint stays what it is.

    Returns:
        The data set, and whether anything was written.

    Raises:
        ConfigError: bins are wanted and the pictures are not packed at the smallest of them.
        DataError: the disk is full, `out` cannot be written, or a raw file has changed.
    """
    check_writable(out)
    bins = bins or (is_dataset(out) and open_dataset(out).has_bins)
    if bins and plan.settings.preprocessing.side_px != BIN_SIDES_PX[0]:
        raise ConfigError(
            f"--bins needs --preprocessing.side-px {BIN_SIDES_PX[0]}, the smallest bin; it is "
            f"{plan.settings.preprocessing.side_px}. A data set that has bins keeps them: give "
            f"another --out for one without."
        )
    told = ledger.read(out / ledger.NAME)
    if is_dataset(out) and _says_the_same(open_dataset(out), plan, bins):
        if plan.by_hand:  # Decisions that change nothing, such as to keep: noted all the same.
            ledger.append(out / ledger.NAME, plan.by_hand)
        return open_dataset(out), bool(plan.by_hand)
    when = _now()
    by = f"prepare, policy {plan.settings.policy}"
    lines = [*told, *plan.by_hand]
    lines += ledger.update(told, ledger.decisions(plan.frame, by, when), by, when)
    _replace(plan, out, mapper, lines, lambda building: history.carry(out, building), bins)
    return open_dataset(out), True


def undo(out: Path, mapper: Mapper, opener: Opener = open_root) -> Dataset:
    """Goes back to the version before the present one; decisions by hand since are retracted.

    Its pictures are packed from the raw folders again.

    Raises:
        DataError: there is no version before, a raw file has changed or is gone, or `out` cannot
            be written.
    """
    open_dataset(out)  # Raises if there is none.
    before = history.versions(out)
    if not before:
        raise DataError(f"{out} has no version before this one: nothing to undo.")
    version = before[-1]
    dataset = version.dataset
    if dataset.description["schema"] != SCHEMA:
        raise DataError(
            f"The version before this one, {dataset.fingerprint[:12]}, was written by an older "
            f"program and cannot be packed again."
        )
    told = ledger.read(out / ledger.NAME)
    when = _now()
    lines = [*told, *ledger.retractions(told, version.ledger_lines, "undo", when)]
    lines += ledger.update(told, ledger.decisions(dataset.manifest, "undo", when), "undo", when)
    plan = Plan(
        frame=dataset.manifest,
        unknown_folders=tuple(dataset.description["unknown_folders"]),
        settings=override(PrepareSettings(), dataset.description["settings"], str(out)),
        fingerprint=dataset.fingerprint,
        by_hand=(),
        opener=opener,
    )
    _replace(
        plan,
        out,
        mapper,
        lines,
        lambda new: history.carry(out, new, without_last=True),
        dataset.has_bins,
    )
    return open_dataset(out)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _says_the_same(dataset: Dataset, plan: Plan, bins: bool) -> bool:
    same_data = dataset.fingerprint == plan.fingerprint and dataset.has_bins == bins
    return same_data and dataset.manifest.equals(plan.frame.reset_index(drop=True))


def _replace(
    plan: Plan,
    out: Path,
    mapper: Mapper,
    lines: Sequence[ledger.Decision],
    carry: Callable[[Path], None],
    bins: bool,
) -> None:
    """Builds the data set beside `out`, and puts it in its place when it is whole."""
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        building.chmod(0o755)
        _write(plan, building, mapper, bins)
        ledger.append(building / ledger.NAME, lines)
        carry(building)
        _swap(building, out)
    except OSError as error:
        raise DataError(
            f"{out} could not be written: {error.strerror or error}. Nothing was changed; make "
            f"room or choose another --out."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(plan: Plan, building: Path, mapper: Mapper, bins: bool) -> None:
    (building / PIXELS_FOLDER).mkdir()
    _pack(plan, building / PIXELS_FOLDER, mapper, bins)
    tables = building / "tables"
    tables.mkdir()
    plan.steps.to_csv(tables / "steps.csv")
    plan.splits.to_csv(tables / "splits.csv")
    duplicates = duplicate_table(plan.frame, plan.settings.policy)
    duplicates.to_csv(tables / "eda_duplicate_list.csv", index=False)
    plan.frame.to_parquet(building / MANIFEST_FILE, index=False)
    description = {
        "schema": SCHEMA,
        "fingerprint": plan.fingerprint,
        "settings": to_dict(plan.settings),
        "counts": {"steps": _nested(plan.steps), "splits": _nested(plan.splits)},
        "unknown_folders": list(plan.unknown_folders),
        "bins": bins,
    }
    (building / DATASET_FILE).write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    _write_audit(plan, building, mapper)


def _nested(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(step): {str(name): int(count) for name, count in row.items()}
        for step, row in table.iterrows()
    }


def _pack(plan: Plan, folder: Path, mapper: Mapper, bins: bool) -> None:
    packed = plan.frame[plan.frame["pixel_row"] >= 0].sort_values("pixel_row")
    side_px = plan.settings.preprocessing.side_px
    jobs = _shards(packed, folder, side_px, SHARD_ROWS)
    if bins:
        for side, own in packed.groupby(sides_of(packed)):
            if side > side_px:
                (folder / bin_folder(side)).mkdir()
                jobs += _shards(own, folder / bin_folder(side), int(side), bin_rows(side))
    settings = plan.settings.preprocessing
    mapper(functools.partial(_pack_row, settings=settings, opener=plan.opener), jobs, "packing")


def _shards(rows: pd.DataFrame, folder: Path, side_px: int, shard_rows: int) -> list[Row]:
    pictures = rows[["root", "path", "md5"]].to_dict("records")
    return [
        {
            "target": str(folder / shard_name(number)),
            "pictures": json.dumps(pictures[start : start + shard_rows]),
            "side_px": side_px,
        }
        for number, start in enumerate(range(0, len(pictures), shard_rows))
    ]


def _pack_row(row: Row, settings: Preprocessing, opener: Opener) -> Row:
    pictures = [Picture(**picture) for picture in json.loads(row["pictures"])]
    settings = replace(settings, side_px=row["side_px"])
    return {"packed": pack_shard(pictures, Path(row["target"]), settings, opener)}


def _write_audit(plan: Plan, building: Path, mapper: Mapper) -> None:
    roots = sorted(set(plan.frame["root"]))
    subject = audit_page.Subject(
        title=f"data set {plan.fingerprint[:12]}",
        frame=plan.frame,
        classes=plan.settings.classes,
        steps=plan.steps,
        splits=plan.splits,
        shares=plan.settings.split,
        facts={
            "raw": ", ".join(roots),
            "fingerprint": plan.fingerprint,
            "copies in several classes": plan.settings.policy,
            "near duplicates": f"{plan.settings.near}, up to {plan.settings.near_distance} bits",
        },
        unknown_folders=plan.unknown_folders,
        provenance=audit_page.read_provenance(roots, plan.opener),
    )

    def thumbnails(wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        look = functools.partial(
            _thumbnail_row, settings=plan.settings.preprocessing, opener=plan.opener
        )
        rows: list[Row] = [{"root": root, "path": path} for root, path in wanted]
        pictures = mapper(look, rows, "audit")
        return {
            place: row["picture"]
            for place, row in zip(wanted, pictures, strict=True)
            if row["picture"]
        }

    audit_page.write(subject, building, thumbnails)


def _thumbnail_row(row: Row, settings: Preprocessing, opener: Opener) -> Row:
    return {"picture": audit_page.thumbnail(row["root"], row["path"], settings, opener)}


def _swap(building: Path, out: Path) -> None:
    """Puts the new folder in the old one's place; at no moment is there half a data set."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        out.rename(old / out.name)
        building.rename(out)
        shutil.rmtree(old)
    else:
        building.rename(out)
