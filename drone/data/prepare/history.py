"""Earlier versions of a data set: listing them, opening them, comparing two.

A version keeps the manifest and settings but not the pixels, which `write.undo_last` packs again
from the raw files.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from drone.data.dataset import DATASET_FILE, MANIFEST_FILE, Dataset, open_dataset
from drone.data.prepare import ledger
from drone.errors import DataError

_HISTORY_FOLDER = "history"
_LEDGER_LINES_FILE = "ledger_lines.json"


@dataclass(frozen=True)
class Version:
    """An earlier version of a data set, without its pixels."""

    folder: Path

    @property
    def dataset(self) -> Dataset:
        """Its description and manifest; its pixels cannot be read."""
        return open_dataset(self.folder)

    @property
    def ledger_lines(self) -> int:
        """Number of lines that the ledger had."""
        return int(json.loads((self.folder / _LEDGER_LINES_FILE).read_text("utf-8")))


def versions(out: Path) -> list[Version]:
    """Returns the versions before the present one, oldest first."""
    history = out / _HISTORY_FOLDER
    folders = history.glob("*") if history.is_dir() else []
    return [Version(folder) for folder in sorted(folders)]


def copy_history(
    out: Path, building: Path, *, add_present: bool = False, drop_last: bool = False
) -> None:
    """Copies the history into the folder that is about to replace a data set.

    Args:
        out: The data set as it is, if there is one.
        building: The folder that replaces it.
        add_present: Appends the present version to the history.
        drop_last: Leaves out the last version, for an undo.
    """
    earlier = versions(out)
    for version in earlier[:-1] if drop_last else earlier:
        shutil.copytree(version.folder, building / _HISTORY_FOLDER / version.folder.name)
    if not add_present:
        return
    number = int(earlier[-1].folder.name) + 1 if earlier else 1
    target = building / _HISTORY_FOLDER / f"{number:04d}"
    target.mkdir(parents=True)
    for name in (DATASET_FILE, MANIFEST_FILE):
        shutil.copy(out / name, target / name)
    num_lines = len(ledger.read(out / ledger.LEDGER_FILE))
    # Marks where an undo starts to retract decisions made by hand.
    (target / _LEDGER_LINES_FILE).write_text(f"{num_lines}\n", "utf-8")


def open_version(name: str) -> Dataset:
    """Opens a data set by its folder, or one of its versions by FOLDER@FINGERPRINT.

    The first digits of the fingerprint are enough.

    Raises:
        DataError: There is no such version; lists those that there are.
    """
    folder, _, prefix = name.rpartition("@")
    # A folder may have an @ in its own name.
    if not folder or Path(name).exists():
        return open_dataset(Path(name))
    present = open_dataset(Path(folder))
    datasets = [present, *(version.dataset for version in reversed(versions(Path(folder))))]
    for dataset in datasets:
        if prefix and dataset.fingerprint.startswith(prefix):
            return dataset
    available = ", ".join(dataset.fingerprint[:12] for dataset in datasets)
    raise DataError(
        f"{folder} has no version {prefix!r}; its versions from new to old are {available}."
    )


def diff(old: Dataset, new: Dataset) -> pd.DataFrame:
    """Returns the files that differ between two data sets, sorted by path.

    Returns:
        Columns `path`, `md5`, `change` ("added", "removed", "kept", "dropped", "class", "split",
        "reason"), `before` and `after` (a class, a split or a reason).
    """
    # A file whose content changed counts as removed and added: it is another image.
    key = ["path", "md5"]
    columns = [*key, "kept", "reason", "class_name", "split"]
    both = old.manifest[columns].merge(
        new.manifest[columns], on=key, how="outer", suffixes=("_old", "_new"), indicator=True
    )
    changes = pd.DataFrame(
        [_change(row) for row in both.to_dict("records")],
        columns=["change", "before", "after"],
        index=both.index,
    )
    return pd.concat([both[key], changes], axis=1)[changes["change"] != ""].sort_values(key)


def _change(row: dict[str, object]) -> tuple[str, object, object]:
    if row["_merge"] == "right_only":
        return "added", "", row["class_name_new"] if row["kept_new"] else row["reason_new"]
    if row["_merge"] == "left_only":
        return "removed", row["class_name_old"] if row["kept_old"] else row["reason_old"], ""
    # Kept or dropped first: class and split matter only to images that stay.
    if row["kept_old"] != row["kept_new"]:
        change = "kept" if row["kept_new"] else "dropped"
        return change, row["reason_old"], row["reason_new"]
    for name, column in (("reason", "reason"), ("class", "class_name"), ("split", "split")):
        if row[f"{column}_old"] != row[f"{column}_new"]:
            return name, row[f"{column}_old"], row[f"{column}_new"]
    return "", "", ""
