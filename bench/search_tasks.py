"""The data sets of `search_value.py`: six tasks, each with several splits.

    drones    the images as they are
    few       25 images of each class for training and validation, the rest for test
    noisy     30 % of the labels of training and validation are wrong
    grey64    grey images of 64 px, enlarged again
    drawn     the made-up set, 25 images of each class too: with all of them no model errs
    mixed     the images and others of several sizes and origins together

A task has large test splits (40 % or more), since its methods differ by a few points.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from drone.data.dataset import Dataset, is_dataset, open_dataset
from drone.synth.raw_folder import SynthSettings, write_raw_folder

ROOT = Path(__file__).resolve().parents[1]

NUM_FEW = 25
WRONG = 0.3
SMALL_PX = 64
NUM_DRAWN = 300
"""Drawings of each class."""

SHARES = {"train": 0.5, "validation": 0.1, "test": 0.4}


@dataclass(frozen=True)
class Tasks:
    """Makes the data sets of the tasks, each once."""

    shared: Path
    """Folder with raw folders named drones and multires."""

    folder: Path
    """Where data sets are written."""

    def dataset(self, task: str, seed: int) -> Dataset:
        """The data set of a task with the split of this seed."""
        target = self.folder / task / f"split-{seed}"
        if not is_dataset(target):
            maker: Callable[[int, Path], None] = getattr(self, f"_{task}")
            maker(seed, target)
        return open_dataset(target)

    def _drones(self, seed: int, target: Path) -> None:
        _prepare([self.shared / "drones"], target, seed)

    def _mixed(self, seed: int, target: Path) -> None:
        _prepare([self.shared / "drones", self.shared / "multires"], target, seed)

    def _drawn(self, seed: int, target: Path) -> None:
        raw, whole = self.folder / "drawn" / "raw", target.with_name(f"{target.name}-whole")
        if not raw.exists():
            aside = raw.with_name("drawing")
            shutil.rmtree(aside, ignore_errors=True)
            settings = SynthSettings(images_per_class=NUM_DRAWN, mislabelled=0, max_side_px=448)
            write_raw_folder(aside, settings)
            aside.rename(raw)
        if not is_dataset(whole):
            _prepare([raw], whole, seed)
        self._prepare_tree(_few_learned(_kept(open_dataset(whole)), seed), target, _link, raw)

    def _few(self, seed: int, target: Path) -> None:
        self._prepare_tree(_few_learned(self._rows_of_drones(seed), seed), target, _link)

    def _noisy(self, seed: int, target: Path) -> None:
        rows = self._rows_of_drones(seed)
        generator = np.random.default_rng(seed)
        wrong = (generator.random(len(rows)) < WRONG) & (rows["split"] != "test")
        classes = sorted(rows["class_name"].unique())
        given = rows["class_name"].map(classes.index)
        other = (given + generator.integers(1, len(classes), len(rows))) % len(classes)
        named = other.map(lambda number: classes[number])
        rows["class_name"] = rows["class_name"].where(~wrong, named)
        self._prepare_tree(rows, target, _link)

    def _grey64(self, seed: int, target: Path) -> None:
        self._prepare_tree(self._rows_of_drones(seed), target, _grey_and_small)

    def _rows_of_drones(self, seed: int) -> pd.DataFrame:
        return _kept(self.dataset("drones", seed))

    def _prepare_tree(
        self,
        rows: pd.DataFrame,
        target: Path,
        write: Callable[[Path, Path], None],
        raw: Path | None = None,
    ) -> None:
        """Prepares images of a raw folder in the splits and classes that the rows say."""
        tree = target.with_name(f"{target.name}-raw")
        shutil.rmtree(tree, ignore_errors=True)
        for number, row in enumerate(rows.itertuples()):
            place = tree / str(row.split) / str(row.class_name)
            place.mkdir(parents=True, exist_ok=True)
            source = (raw or self.shared / "drones") / str(row.path)
            write(source, place / f"{number:05d}{source.suffix}")
        _prepare([tree / split for split in SHARES], target, 0, "--keep-split")


def _kept(dataset: Dataset) -> pd.DataFrame:
    manifest = dataset.manifest
    return manifest[manifest["kept"]].reset_index(drop=True)


def _few_learned(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Leaves few images of each class for training and validation; the others test."""
    learned = rows[rows["split"] != "test"].sample(frac=1, random_state=seed)
    learned = learned.groupby("class_name").head(NUM_FEW)
    is_learned = rows.index.isin(learned.index)
    # No near duplicate of a learned image may test.
    rows = rows.assign(split=rows["split"].where(is_learned, "test"))
    return rows[is_learned | ~rows["group"].isin(learned["group"])]


def _prepare(raw: list[Path], target: Path, seed: int, *flags: str) -> None:
    words = [sys.executable, str(ROOT / "ray_jobs" / "prepare.py"), "--raw", *map(str, raw)]
    words += ["--out", str(target), "--policy", "first", "--split.seed", str(seed), *flags]
    for name, share in SHARES.items():
        words += [f"--split.{name}", str(share)]
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([*words, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    print(f"prepared {target}: {json.loads(done.stdout.splitlines()[-1])['fingerprint'][:12]}")


def _link(source: Path, target: Path) -> None:
    target.symlink_to(source.resolve())


def _grey_and_small(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        small = image.convert("L").resize((SMALL_PX, SMALL_PX), Image.Resampling.BILINEAR)
        small.resize((224, 224), Image.Resampling.BILINEAR).save(target.with_suffix(".png"))
