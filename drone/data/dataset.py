"""A prepared data set: a folder that never changes, named by its fingerprint.

dataset.json        settings, classes, counts, fingerprint, checksums of the manifest and the pixels
manifest.parquet    one row per file seen, with its class or kind, its verdict and its split
ledger.jsonl        every decision, oldest first
classes.yaml        the classes, as --classes takes them
pixels/             the images as the model sees them, at 224 px and, with --bins, at the side of
                    the bin nearest to their own size
tables/             counts by step and class, tables of the audit, the original's duplicate list
audit.html          what is in the raw folders and what became of it
history/            manifests of earlier versions, for --undo and --diff
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.commands import command
from drone.data.bins import bin_sides
from drone.data.grouped_partition import assign_folds
from drone.data.images import Images, Negatives
from drone.data.pixels import BinnedStore, PixelStore, damaged
from drone.errors import ConfigError, DataError
from drone.files import SchemaError, checksum, unseal
from drone.labels import NONE, ClassSet, nearest
from drone.serving.preprocess import Preprocessing

SCHEMA = 7
"""Raised whenever a program of another version could misread the folder."""

SPLITS = ("train", "validation", "test")
DEVELOPMENT_SPLITS = SPLITS[:2]
"""Splits that training and search may read."""

DATASET_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
CLASSES_FILE = "classes.yaml"
PIXELS_FOLDER = "pixels"


@dataclass(frozen=True, kw_only=True)
class Split(Images):
    """The images of one split that show a class."""

    labels_N: NDArray[np.int64]
    """Class indices."""

    num_classes: int

    def subset(self, name: str, positions_P: NDArray[np.int64]) -> Self:
        """As of `Images`: the images at these positions, as a split of its own."""
        images = super().subset(name, positions_P)
        return replace(images, labels_N=self.labels_N[positions_P])

    @property
    def counts_K(self) -> NDArray[np.int64]:
        """Number of images of each class."""
        return np.bincount(self.labels_N, minlength=self.num_classes)


@dataclass(frozen=True)
class Dataset:
    """A prepared data set, opened for reading."""

    folder: Path
    description: dict[str, Any]
    at_own_sizes: bool = False
    """Whether images are read at the sides of their bins, or all at `preprocessing.side_px`."""

    @property
    def has_bins(self) -> bool:
        """Whether the images are packed at the sides of their bins too."""
        return bool(self.description["bins"])

    def at_bins(self) -> "Dataset":
        """Returns the same data set, which must have bins, read at the sides of its bins."""
        return replace(self, at_own_sizes=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the training data."""
        return str(self.description["fingerprint"])

    @property
    def classes(self) -> ClassSet:
        """Classes in the order of their indices."""
        return ClassSet.of(**self.description["classes"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How its pixels were made."""
        return Preprocessing(**self.description["settings"]["preprocessing"])

    @property
    def checksums(self) -> Mapping[str, str]:
        """SHA-256 of the manifest and of each shard, by path in the folder."""
        checksums: dict[str, str] = self.description["checksums"]
        return checksums

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """One row per file seen, sorted by path, negatives last.

        The class of a negative is `labels.NONE`; readers that want images of classes alone take
        `rows` or `packed_rows`.

        Raises:
            DamagedError: The file is missing, or not what `prepare` wrote.
        """
        file = self.folder / MANIFEST_FILE
        try:
            if checksum(file) != self.checksums[MANIFEST_FILE]:
                raise ValueError("its checksum differs")
            return pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise damaged(file, error) from error

    def damaged_files(self) -> Iterator[Path]:
        """Yields the files that are missing or not what `prepare` wrote; reads every byte."""
        for name, expected in self.checksums.items():
            file = self.folder / name
            if not file.is_file() or checksum(file) != expected:
                yield file

    def split(self, name: str) -> Split:
        """Returns the images of one split.

        Raises:
            ConfigError: There is no such split.
            DataError: The folder is damaged.
        """
        return self._images(name, self.rows(_checked(name)))

    def rows(self, name: str) -> pd.DataFrame:
        """Returns the manifest's rows of the kept images of one split; negatives are not in it."""
        rows = self._kept_rows(name)
        return rows[rows["class_name"] != NONE]

    def negatives(self, name: str) -> Negatives:
        """Returns the kept images of one split that show none of the classes.

        Args:
            name: A split, or "development" for training and validation together.

        Raises:
            ConfigError: There is no such split.
            DataError: The folder is damaged.
        """
        names = DEVELOPMENT_SPLITS if name == "development" else (_checked(name),)
        rows = pd.concat([self._kept_rows(split) for split in names])
        rows = rows[rows["class_name"] == NONE]
        return Negatives(
            name=name,
            paths=tuple(rows["path"]),
            kinds_N=rows["kind"].to_numpy(np.str_),
            keys_N=_content_keys(rows["md5"]),
            rows_N=rows["pixel_row"].to_numpy(np.int64, copy=True),
            store=self._store,
        )

    def _kept_rows(self, name: str) -> pd.DataFrame:
        return self.manifest[self.manifest["kept"] & (self.manifest["split"] == name)]

    def development(self) -> Split:
        """Returns the images of training, then those of validation: all that training may see."""
        return self._images("development", self._development_rows())

    def images_by_content(self) -> Split:
        """Returns the images of all splits, ordered by their content, so alike for every split."""
        rows = pd.concat([self.rows(name) for name in SPLITS])
        return self._images("all", rows.sort_values(["md5", "path"]))

    def fold_numbers(self, num_folds: int) -> NDArray[np.int64]:
        """Returns the fold of each image of `development`, (N,): 0 to num_folds - 1.

        Folds are stratified by class, and no group of near duplicates is in two of them.

        Raises:
            DataError: There are too few groups for so many folds.
        """
        rows = self._development_rows()
        names = assign_folds(rows, self.classes, num_folds, seed=0)
        if names.nunique() < num_folds:
            raise DataError(
                f"{self.folder} has {rows['group'].nunique()} different images for training and "
                f"validation: too few for {num_folds} folds. Add images, or lower --folds."
            )
        numbers_N: NDArray[np.int64] = names.to_numpy(np.int64)
        return numbers_N

    def development_groups(self) -> NDArray[np.int64]:
        """Returns the number of the group of near duplicates of each image of `development`."""
        groups_N: NDArray[np.int64] = pd.factorize(self._development_rows()["group"])[0]
        return groups_N

    def _development_rows(self) -> pd.DataFrame:
        return pd.concat([self.rows(name) for name in DEVELOPMENT_SPLITS])

    def split_before_review(self, name: str) -> tuple[Split, NDArray[np.bool_]]:
        """Returns a split as it would be without the user's decisions on its images.

        Returns:
            All its images of classes with the classes of their folders, including those that the
            user dropped; and which of them the user dropped or relabelled, (N,).
        """
        rows = self.manifest[self.manifest["split"] == name]
        rows = rows[rows["given_class"] != NONE]
        # Dropped images keep their split and pixels, so nothing has to be read again.
        changed_N = (~rows["kept"] | (rows["class_name"] != rows["given_class"])).to_numpy(bool)
        return self._images(name, rows.assign(class_name=rows["given_class"])), changed_N

    def packed_rows(self) -> pd.DataFrame:
        """Returns the manifest's rows of the packed images of classes, in the order of the pixels.

        Negatives are packed beside them, so a row's place here is not its row in the pixels.
        """
        rows = self._all_packed_rows
        return rows[rows["class_name"] != NONE].reset_index(drop=True)

    @cached_property
    def _all_packed_rows(self) -> pd.DataFrame:
        rows = self.manifest[self.manifest["pixel_row"] >= 0]
        return rows.sort_values("pixel_row", ignore_index=True)

    def pixels(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns pixels by their row in the store, (N, side_px, side_px, 3) uint8."""
        return self._store.gather(rows_N)

    def _images(self, name: str, rows: pd.DataFrame) -> Split:
        index = {class_name: number for number, class_name in enumerate(self.classes)}
        return Split(
            name=name,
            paths=tuple(rows["path"]),
            # Copies: pandas gives read-only views, and torch warns about those.
            labels_N=rows["class_name"].map(index).to_numpy(np.int64, copy=True),
            keys_N=_content_keys(rows["md5"]),
            rows_N=rows["pixel_row"].to_numpy(np.int64, copy=True),
            store=self._store,
            num_classes=len(self.classes),
        )

    @cached_property
    def _store(self) -> PixelStore | BinnedStore:
        folder, side_px = self.folder / PIXELS_FOLDER, self.preprocessing.side_px
        packed = self._all_packed_rows
        checksums = {self.folder / name: value for name, value in self.checksums.items()}
        if self.at_own_sizes:
            return BinnedStore(folder, bin_sides(packed), side_px, checksums)
        return PixelStore(folder, len(packed), side_px, checksums)


def _checked(name: str) -> str:
    """Returns the name of a split.

    Raises:
        ConfigError: There is no such split.
    """
    if name not in SPLITS:
        like = nearest(name, SPLITS) or SPLITS[0]
        raise ConfigError(f"There is no split {name!r}; did you mean {like!r}?")
    return name


def _content_keys(md5: "pd.Series[str]") -> NDArray[np.int64]:
    """Returns the first 63 bits of each md5, which fit into a non-negative int64."""
    # By content: an image that is moved or renamed keeps its augmented views.
    return np.array([int(value[:16], 16) >> 1 for value in md5], dtype=np.int64)


def is_dataset(folder: Path) -> bool:
    """Returns whether the folder holds a prepared data set."""
    return (folder / DATASET_FILE).is_file()


def open_dataset(folder: Path) -> Dataset:
    """Opens a folder that `prepare` wrote.

    Raises:
        DamagedError: dataset.json is not what `prepare` wrote.
        DataError: There is no data set in it, or one of another schema.
    """
    file = folder / DATASET_FILE
    if not file.is_file():
        # What is there may be the images themselves, beside which no data set can be written.
        raw, out = (folder, "DATASET") if folder.exists() else ("RAW_FOLDER", folder)
        problem = f"it has no {DATASET_FILE}" if folder.exists() else "it does not exist"
        raise DataError(
            f"{folder} is not a prepared data set: {problem}. Make one of a folder of class "
            f"folders: {command('prepare', raw=raw, out=out)}"
        )
    try:
        description = unseal(file.read_bytes(), SCHEMA)
    except SchemaError as error:
        raise DataError(
            f"{folder} has the schema {error.schema}, and this version reads {SCHEMA}. Move it "
            f"away and make it anew: {command('prepare', raw='RAW_FOLDER', out=folder)}"
        ) from error
    except (OSError, ValueError) as error:
        raise damaged(file, error) from error
    return Dataset(folder=folder, description=description)
