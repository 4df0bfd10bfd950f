"""Versions of a data set: what differs between two, and the way back."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from drone.data import ledger
from drone.data.dataset import DATASET_FILE, MANIFEST_FILE, Dataset, open_dataset
from drone.errors import DataError

FOLDER = "history"
_LINES_FILE = "ledger_lines.json"


@dataclass(frozen=True)
class Version:
    """An earlier version: its manifest and settings without its pixels."""

    folder: Path

    @property
    def dataset(self) -> Dataset:
        """Its description and manifest; pixels cannot be read."""
        return open_dataset(self.folder)

    @property
    def ledger_lines(self) -> int:
        """How long the ledger was."""
        return int(json.loads((self.folder / _LINES_FILE).read_text("utf-8")))


def versions(out: Path) -> list[Version]:
    """The versions before the present one, oldest first."""
    folders = (out / FOLDER).glob("*") if (out / FOLDER).is_dir() else []
    return [Version(folder) for folder in sorted(folders)]


def carry(out: Path, building: Path, *, without_last: bool = False) -> None:
    """Takes the history along into the folder that replaces a data set.

    Args:
        out: the data set as it is; nothing happens if there is none.
        building: the folder that is about to take its place.
        without_last: for the way back; else the present version becomes the last one.
    """
    if not (out / DATASET_FILE).is_file():
        return
    kept = versions(out)
    for version in kept[:-1] if without_last else kept:
        shutil.copytree(version.folder, building / FOLDER / version.folder.name)
    if without_last:
        return
    number = int(kept[-1].folder.name) + 1 if kept else 1
    target = building / FOLDER / f"{number:04d}"
    target.mkdir(parents=True)
    for name in (DATASET_FILE, MANIFEST_FILE):
        shutil.copy(out / name, target / name)
    lines = len(ledger.read(out / ledger.NAME))
    (target / _LINES_FILE).write_text(f"{lines}\n", "utf-8")


def find(name: str) -> Dataset:
    """A data set's folder, or FOLDER@FINGERPRINT for one of its versions (the first digits do).

    Raises:
        DataError: there is none; says which there are.
    """
    folder, _, wanted = name.rpartition("@")
    if not folder or Path(name).exists():
        return open_dataset(Path(name))
    present = open_dataset(Path(folder))
    all_of_them = [present, *(version.dataset for version in reversed(versions(Path(folder))))]
    for dataset in all_of_them:
        if wanted and dataset.fingerprint.startswith(wanted):
            return dataset
    has = ", ".join(dataset.fingerprint[:12] for dataset in all_of_them)
    raise DataError(f"{folder} has no version {wanted!r}; from new to old it has: {has}.")


def diff(old: Dataset, new: Dataset) -> pd.DataFrame:
    """What became of each file that is not the same in both, sorted by path.

    Returns:
        Columns `path`, `md5`, `change` ("added", "removed", "kept", "dropped", "class", "split",
        "reason"), `before` and `after` (a class, a split or a reason).
    """
    key = ["path", "md5"]
    columns = [*key, "kept", "reason", "class_name", "split"]
    both = old.manifest[columns].merge(
        new.manifest[columns], on=key, how="outer", suffixes=("_old", "_new"), indicator=True
    )
    changes = [_change(row) for row in both.to_dict("records")]
    told = pd.DataFrame(changes, columns=["change", "before", "after"], index=both.index)
    return pd.concat([both[key], told], axis=1)[told["change"] != ""].sort_values(key)


def _change(row: dict[str, object]) -> tuple[str, object, object]:
    if row["_merge"] == "right_only":
        return "added", "", row["class_name_new"] if row["kept_new"] else row["reason_new"]
    if row["_merge"] == "left_only":
        return "removed", row["class_name_old"] if row["kept_old"] else row["reason_old"], ""
    if row["kept_old"] != row["kept_new"]:
        change = "kept" if row["kept_new"] else "dropped"
        return change, row["reason_old"], row["reason_new"]
    for name, column in (("reason", "reason"), ("class", "class_name"), ("split", "split")):
        if row[f"{column}_old"] != row[f"{column}_new"]:
            return name, row[f"{column}_old"], row[f"{column}_new"]
    return "", "", ""
