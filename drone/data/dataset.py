"""A prepared data set: a folder that never changes, named by its fingerprint.

dataset.json        settings, classes, counts, fingerprint
manifest.parquet    a row for each file seen, with its verdict and split
ledger.jsonl        every decision, oldest first
pixels/             the kept pictures as the model sees them, at 224 px and, with --bins, at the
                    side of the bin nearest to their own size
tables/             counts by step and class; the original's table of duplicates
audit.html          what is in the raw folders and what became of it
history/            manifests of the versions before, for --undo and --diff
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.data.bins import sides_of
from drone.data.pixels import BinnedStore, PixelStore
from drone.data.split import SPLITS, folds
from drone.errors import ConfigError, DataError
from drone.labels import nearest
from drone.serving.preprocess import Preprocessing

SCHEMA = 2
"""Raised whenever an older program could misread the folder."""

_READ = (1, 2)
"""Schemas that this program understands; 1 had no decisions by hand."""

DATASET_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
PIXELS_FOLDER = "pixels"


def fingerprint(frame: pd.DataFrame, settings: dict[str, Any]) -> str:
    """SHA-256 of all that decides the training data, hexadecimal.

    Those are the settings (classes, preprocessing, policy, split) and, of each kept picture, its
    content, class, split and group. Where the files lie and what they are called does not count.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    kept = frame.loc[frame["kept"], ["md5", "class_name", "split", "group"]]
    for row in sorted(kept.itertuples(index=False, name=None)):
        digest.update("\t".join(row).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """The pictures of one split, in the order of the manifest; N of them."""

    name: str
    paths: tuple[str, ...]
    labels_N: NDArray[np.int64]
    """Class indices."""

    keys_N: NDArray[np.int64]
    """A number for each picture that depends on its content alone; seeds its augmentation."""

    rows_N: NDArray[np.int64]
    """Its rows in the store."""

    store: PixelStore | BinnedStore
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels_N)

    def gather(self, positions_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels of the pictures at these positions, (B, side, side, 3) uint8.

        Of a data set at its bins, all of them must be of one bin.
        """
        return self.store.gather(self.rows_N[positions_B])

    @property
    def sides_N(self) -> NDArray[np.int64]:
        """Side of each picture's pixels."""
        return self.store.sides(self.rows_N)

    @property
    def counts_K(self) -> NDArray[np.int64]:
        """Pictures by class."""
        return np.bincount(self.labels_N, minlength=self.num_classes)


@dataclass(frozen=True)
class Dataset:
    """A prepared data set, opened for reading."""

    folder: Path
    description: dict[str, Any]
    at_own_sizes: bool = False
    """Whether pictures are read at the sides of their bins; else all at `preprocessing.side_px`."""

    @property
    def has_bins(self) -> bool:
        """Whether the pictures are packed at the sides of their bins too."""
        return bool(self.description.get("bins"))

    def at_bins(self, place: str = "") -> "Dataset":
        """The same data set, read at the sides of its pictures' bins.

        Args:
            place: what a person calls it, if that is not its folder.

        Raises:
            DataError: it was packed at one side only.
        """
        if not self.has_bins:
            raise DataError(
                f"{place or self.folder} has its pictures at {self.preprocessing.side_px} px only, "
                f"and a resizing network takes them at their own sizes. Pack them: "
                f"python ray_jobs/prepare.py --raw RAW_FOLDER --out {place or self.folder} --bins"
            )
        return replace(self, at_own_sizes=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the training data."""
        return str(self.description["fingerprint"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their indices."""
        return tuple(self.description["settings"]["classes"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How its pixels were made."""
        return Preprocessing(**self.description["settings"]["preprocessing"])

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """A row for each file seen."""
        try:
            frame = pd.read_parquet(self.folder / MANIFEST_FILE)
            if "given_class" not in frame:  # Schema 1.
                frame["given_class"] = frame["class_name"]
            return frame
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.folder / MANIFEST_FILE} is missing or damaged; prepare the data set again."
            ) from error

    def split(self, name: str) -> Split:
        """The pictures of one split.

        Raises:
            ConfigError: no such split.
            DataError: the folder is damaged.
        """
        if name not in SPLITS:
            like = nearest(name, SPLITS) or SPLITS[0]
            raise ConfigError(f"There is no split {name!r}; did you mean {like!r}?")
        return self._pictures(name, self.rows(name))

    def rows(self, name: str) -> pd.DataFrame:
        """The manifest's rows of the kept pictures of one split."""
        return self.manifest[self.manifest["kept"] & (self.manifest["split"] == name)]

    def resplit(self, number: int) -> tuple[Split, Split]:
        """Training and validation pictures shared out anew; the test split stays what it is.

        What validated before trains, and another part of the training pictures of about the same
        size validates. Parts of consecutive numbers are disjoint until all have had their turn.
        """
        training, validation = (self.rows(name) for name in SPLITS[:2])
        parts = max(2, round(len(training) / max(1, len(validation))))
        turn, part = divmod(number, parts)
        held_out = folds(training, self.classes, parts, turn) == str(part)
        learnt = pd.concat([training[~held_out], validation]).sort_index()
        return self._pictures("train", learnt), self._pictures("validation", training[held_out])

    def as_given(self, name: str) -> tuple[Split, NDArray[np.bool_]]:
        """A split as it would be if no person had decided on its pictures.

        Returns:
            All its pictures with the classes of their folders, also those that a person dropped,
            and which of them a person dropped or relabelled.
        """
        rows = self.manifest[self.manifest["split"] == name]
        touched_N = (~rows["kept"] | (rows["class_name"] != rows["given_class"])).to_numpy(bool)
        return self._pictures(name, rows.assign(class_name=rows["given_class"])), touched_N

    def packed(self) -> pd.DataFrame:
        """The manifest's rows of all pictures whose pixels are kept, in the order of the pixels."""
        rows = self.manifest[self.manifest["pixel_row"] >= 0]
        return rows.sort_values("pixel_row", ignore_index=True)

    def pixels(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels by their row in the store, (N, side_px, side_px, 3) uint8."""
        return self._store.gather(rows_N)

    def _pictures(self, name: str, rows: pd.DataFrame) -> Split:
        index = {class_name: number for number, class_name in enumerate(self.classes)}
        return Split(
            name=name,
            paths=tuple(rows["path"]),
            labels_N=rows["class_name"].map(index).to_numpy(np.int64, copy=True),
            keys_N=content_keys(rows["md5"]),
            rows_N=rows["pixel_row"].to_numpy(np.int64, copy=True),
            store=self._store,
            num_classes=len(self.classes),
        )

    @cached_property
    def _store(self) -> PixelStore | BinnedStore:
        folder, side_px = self.folder / PIXELS_FOLDER, self.preprocessing.side_px
        packed = self.packed()
        if self.at_own_sizes:
            return BinnedStore(folder, sides_of(packed), side_px)
        return PixelStore(folder, len(packed), side_px)


def content_keys(md5: "pd.Series[str]") -> NDArray[np.int64]:
    """The first 63 bits of each md5."""
    return np.array([int(value[:16], 16) >> 1 for value in md5], dtype=np.int64)


def is_dataset(folder: Path) -> bool:
    """Whether the folder holds a prepared data set."""
    return (folder / DATASET_FILE).is_file()


def open_dataset(folder: Path) -> Dataset:
    """Opens a folder that `prepare` wrote.

    Raises:
        DataError: there is none, or it is of another schema or damaged.
    """
    file = folder / DATASET_FILE
    if not file.is_file():
        raise DataError(
            f"{folder} is not a prepared data set (it has no {DATASET_FILE}). "
            f"Make one: python ray_jobs/prepare.py --raw RAW_FOLDER --out {folder}"
        )
    try:
        description: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); prepare the data set again.") from error
    if description.get("schema") not in _READ:
        raise DataError(
            f"{folder} has the schema {description.get('schema')}, this program reads "
            f"{' and '.join(map(str, _READ))}; prepare the data set again."
        )
    return Dataset(folder=folder, description=description)
