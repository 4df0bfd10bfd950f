"""Bytes that change on a disk are noticed, named and, where that can be, mended."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from drone.data.dataset import Dataset, open_dataset
from drone.data.prepare import ledger
from drone.errors import DamagedError, DataError, RunError
from drone.search.space import DEFAULT
from drone.search.study import Study
from drone.storage import checkpoints
from drone.training import checkpoint
from drone.training.checkpoint import Identity, Position, Tensors
from tests.faults.updated import Updated, drop
from tests.search.studies import study_spec, trial_record

SEEDS = range(8)


def flip(file: Path, seed: int) -> None:
    """Changes one bit somewhere in a file."""
    content = bytearray(file.read_bytes())
    rng = np.random.default_rng(seed)
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    times = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def read_everything(folder: Path) -> None:
    """Reads all of a data set that training or evaluation would."""
    dataset = open_dataset(folder)
    for name in ("train", "validation", "test"):
        split = dataset.split(name)
        split.gather(np.arange(len(split)))


@pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet", "pixels/shard-00000.npy"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_changed_bit_in_a_data_set_is_noticed(
    dataset: Dataset, tmp_path: Path, name: str, seed: int
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(dataset.folder, folder)
    read_everything(folder)
    flip(folder / name, seed)
    with pytest.raises(DamagedError, match=f"{name} is missing or damaged.*prepare.py") as refused:
        read_everything(folder)
    assert "elete" not in str(refused.value)


def damage_shard(out: Path) -> None:
    flip(out / "pixels" / "shard-00000.npy", 0)


def swap_labels(out: Path) -> None:
    manifest = pd.read_parquet(out / "manifest.parquet")
    names = sorted(manifest["class_name"].unique())
    swapped = dict(zip(names, reversed(names), strict=True))
    manifest["class_name"] = manifest["class_name"].map(swapped)
    manifest.to_parquet(out / "manifest.parquet", index=False)


def cut_manifest(out: Path) -> None:
    file = out / "manifest.parquet"
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    "damage",
    [
        damage_shard,
        swap_labels,
        cut_manifest,
        lambda out: flip(out / "dataset.json", 1),
        lambda out: (out / "dataset.json").write_text("[]"),
        lambda out: (out / "dataset.json").unlink(),
        lambda out: (out / "manifest.parquet").unlink(),
        lambda out: shutil.rmtree(out / "pixels"),
    ],
)
def test_prepare_mends_a_data_set_and_keeps_every_decision(
    updated: Updated, damage: Callable[[Path], object]
) -> None:
    before = updated.state()
    damage(updated.out)
    with pytest.raises(DataError):
        read_everything(updated.out)
    assert "is missing or not what was written" in updated.update([])[0]
    assert updated.state() == before
    read_everything(updated.out)
    updated.undo()
    assert updated.state()[1] == set()


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", "3", '"\\ud800"', "[" * 100_000, "", "\xff"]
)
def test_a_description_that_is_something_else(
    dataset: Dataset, tmp_path: Path, content: str
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(dataset.folder, folder)
    (folder / "dataset.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DamagedError, match=r"dataset.json is missing or damaged \("):
        open_dataset(folder)


def test_a_damaged_ledger_names_the_line_and_is_left_alone(updated: Updated) -> None:
    file = updated.out / ledger.LEDGER_FILE
    lines = file.read_text("utf-8").split("\n")
    lines[1] = lines[1].replace("{", "", 1)
    file.write_text("\n".join(lines), "utf-8")
    before = file.read_bytes()
    with pytest.raises(DamagedError, match="line 2 is no decision.*restore the file from a copy"):
        updated.update([drop(updated.md5[1], "second")])
    assert file.read_bytes() == before


_IDENTITY = Identity(config={"epochs": 3}, classes=("a", "b"), fingerprint="f", commit="c")


def write_checkpoint(folder: Path, epoch: int) -> None:
    """Writes a checkpoint of random weights."""
    weights = {"w": torch.rand(50, 50, generator=torch.Generator().manual_seed(epoch))}
    tensors = Tensors({"model": weights}, {"lr": torch.tensor(0.1)}, weights)
    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder, Position(epoch=epoch), _IDENTITY, tensors)


@pytest.mark.parametrize("name", ["weights.pt", "optimizer.pt", "best.pt", "state.json"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_changed_bit_in_a_checkpoint_costs_that_checkpoint_alone(
    tmp_path: Path, name: str, seed: int
) -> None:
    for epoch in (1, 2):
        write_checkpoint(tmp_path / "run" / f"checkpoint_{epoch}", epoch)
    newest = tmp_path / "run" / "checkpoint_2"
    flip(newest / name, seed)
    with pytest.raises(RunError, match=f"The checkpoint {newest} is damaged") as refused:
        checkpoint.load(newest)
    assert "weights_only" not in str(refused.value)
    said: list[str] = []
    stored = checkpoints.newest(str(tmp_path / "run"), said.append)
    assert stored is not None and stored.epoch == 1
    assert name == "state.json" or f"{newest} is damaged" in said[0]
    assert checkpoint.latest(tmp_path / "run") == tmp_path / "run" / "checkpoint_1"


@pytest.mark.parametrize("name", ["study.json", "trials/0003.json"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_changed_bit_in_a_study_is_noticed(tmp_path: Path, name: str, seed: int) -> None:
    study = Study(tmp_path)
    study.write_spec(study_spec(DEFAULT, 4))
    study.save("trials", trial_record(3, [0.5, 0.6], "finished"))
    flip(tmp_path / name, seed)
    with pytest.raises(RunError, match=f"{name} is damaged.*Restore it from a copy"):
        study.read_spec()
        study.records("trials")
