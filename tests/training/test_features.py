"""Kept activations: the numbers of a run that computes, whatever happens to the files."""

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drone.data.batches import Feed
from drone.data.dataset import Dataset, open_dataset
from drone.model import mobilenet
from drone.training import features
from drone.training.context import LocalContext
from drone.training.features import FeatureStore, Reuse, View
from drone.training.inputs import Computed, Kept, Pictures
from drone.training.loop import fit
from tests.training.runs import material, quick, same_metrics, train

VIEW = View("a" * 32, 300)


def reuse(folder: Path, **changes: object) -> Reuse:
    return replace(Reuse(folder=folder / "features", disk_gb=1.0), **changes)  # type: ignore[arg-type]


def rows(part: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    count = len(VIEW.positions(part))
    return torch.rand((count, 4, 4, 8), generator=torch.Generator().manual_seed(part)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_comes_back_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    store = FeatureStore(tmp_path, 1.0)
    assert [len(VIEW.positions(part)) for part in range(VIEW.num_parts)] == [128, 128, 44]
    shape = (4, 4, 8, dtype.itemsize)
    for part in range(3):
        assert store.read(VIEW, 14, part, shape) is None
        assert store.write(VIEW, 14, part, rows(part, dtype))
        found = store.read(VIEW, 14, part, shape)
        assert found is not None and torch.equal(found, rows(part, dtype))
    assert store.has_all(VIEW, 14) and not store.has_all(VIEW, 15)


@pytest.mark.parametrize("damage", ["cut short", "one bit", "another size"])
def test_a_damaged_part_counts_as_missing(tmp_path: Path, damage: str) -> None:
    store = FeatureStore(tmp_path, 1.0)
    store.write(VIEW, 14, 0, rows(0))
    (file,) = tmp_path.rglob("*.bin")
    content = bytearray(file.read_bytes())
    if damage == "cut short":
        content = content[:-100]
    elif damage == "one bit":
        content[1000] ^= 1
    else:
        content += b"more"
    file.write_bytes(content)
    assert store.read(VIEW, 14, 0, (4, 4, 8, 4)) is None
    assert not file.exists()


def test_the_budget_lets_the_longest_unread_go(tmp_path: Path) -> None:
    size = rows(0).nbytes + 100
    store = FeatureStore(tmp_path, 2.5 * size / 1e9)
    for number in range(2):
        store.write(View(f"{number:032d}", 128), 14, 0, rows(0))
        file = store._file(View(f"{number:032d}", 128), 14, 0)
        features.os.utime(file, (number, number))
    store.read(View(f"{0:032d}", 128), 14, 0, (4, 4, 8, 4))  # Now 1 is the longest unread.
    store.write(View(f"{2:032d}", 128), 14, 0, rows(0))
    left = [store.has_all(View(f"{number:032d}", 128), 14) for number in range(3)]
    assert left == [True, False, True]
    assert store.size_bytes() <= store.budget_bytes
    assert not FeatureStore(tmp_path / "small", 1e-9).write(VIEW, 14, 0, rows(0))


def test_a_part_is_computed_by_one_at_a_time(tmp_path: Path) -> None:
    first, second = FeatureStore(tmp_path, 1.0), FeatureStore(tmp_path, 1.0)
    with first.claim(VIEW, 0, wait=False) as mine:
        assert mine
        with second.claim(VIEW, 0, wait=False) as others:
            assert not others
        with second.claim(VIEW, 1, wait=False) as another_part:
            assert another_part
    with second.claim(VIEW, 0, wait=True) as later:
        assert later


@pytest.mark.parametrize("depth", [0, 1, 4, 12])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_reads_equals_one_that_computes(
    dataset: Dataset, tmp_path: Path, depth: int, precision: str
) -> None:
    config = quick(
        precision=precision, model={"unfreeze_depth": depth, "flip_test": True, "head_width": 16}
    )
    computed = train(config, dataset, LocalContext(tmp_path / "computed"))
    kept = reuse(tmp_path, cuts=(9, 17, 19))
    for name in ("fills", "reads"):
        context = LocalContext(tmp_path / name)
        model = mobilenet.build(config.model, 4, config.seed, None)
        same_metrics(computed, fit(config, material(dataset), model, context, kept), 0)
    cuts = {folder.name for folder in kept.folder.rglob("cut-*")}
    assert {f"cut-{19 - depth:02d}", "cut-09", "cut-17", "cut-19"} == cuts


def test_another_cut_is_read_from_the_same_pass(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = reuse(tmp_path, cuts=(14, 17, 19))
    runs = {}
    for depth in (5, 2, 0):
        config = quick(epochs=1, model={"unfreeze_depth": depth})
        model = mobilenet.build(config.model, 4, 0, None)
        runs[depth] = fit(config, material(dataset), model, LocalContext(tmp_path / "a"), kept)
        (tmp_path / "a").rename(tmp_path / f"a{depth}")
        # From here on nothing is computed any more.
        monkeypatch.setattr(Kept, "_filled", lambda *_: pytest.fail("computed again"))
    for depth, history in runs.items():
        config = quick(epochs=1, model={"unfreeze_depth": depth})
        same_metrics(train(config, dataset, LocalContext(tmp_path / f"b{depth}")), history, 0)


def test_what_decides_a_view_decides_its_name(dataset: Dataset, tmp_path: Path) -> None:
    def names(seed: int = 0, fingerprint: str = "f", **changes: object) -> list[str]:
        config = quick(seed=seed, epochs=4, **changes)
        model = mobilenet.build(config.model, 4, 0, None)
        feeds = (Feed(dataset.split(name), torch.device("cpu")) for name in ("train", "validation"))
        kept = Kept(model, Pictures(config, *feeds), fingerprint, reuse(tmp_path))
        return [View.of(kept.facts_of(view), 9).name for view in range(2)]

    usual = names()
    assert len(set(usual)) == 2
    assert names(optim={"lr_head": 0.1}, model={"unfreeze_depth": 5, "head_width": 8}) == usual
    for other in (
        names(seed=1),
        names(fingerprint="g"),
        names(precision="bf16"),
        names(augment={"strength": 0.25}),
        names(augment={"rotation_deg": 5.0}),
    ):
        assert not set(other) & set(usual)
    without = names(augment={"strength": 0.0})
    assert without[0] == without[1] == names(seed=1, augment={"strength": 0.0})[0]


def test_epochs_share_views_if_asked(dataset: Dataset, tmp_path: Path) -> None:
    config = quick(epochs=4, views=2)
    feeds = [Feed(dataset.split(name), torch.device("cpu")) for name in ("train", "validation")]
    pictures = Pictures(config, *feeds)
    assert [pictures.view_of(epoch) for epoch in range(4)] == [0, 1, 0, 1]
    model = mobilenet.build(config.model, 4, 0, None)
    computed = Computed(model.eval(), pictures)
    positions = np.arange(20)
    assert torch.equal(computed.train(0, positions), computed.train(2, positions))
    assert not torch.equal(computed.train(0, positions), computed.train(1, positions))


def _run(
    folder: Path, data: Path, name: str, reads: bool, results: "multiprocessing.Queue[object]"
) -> None:
    torch.set_num_threads(1)
    config, dataset = quick(epochs=2), open_dataset(data)
    model = mobilenet.build(config.model, 4, 0, None)
    context = LocalContext(folder / name)
    kept = reuse(folder) if reads else None
    results.put(fit(config, material(dataset), model, context, kept))


def test_two_runs_at_once_share_the_work(dataset: Dataset, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    runs = [
        spawn.Process(target=_run, args=(tmp_path, dataset.folder, name, reads, results))
        for name, reads in (("a", True), ("b", True), ("c", False))
    ]
    for run in runs:
        run.start()
    histories = [results.get(timeout=200) for _ in runs]
    for run in runs:
        run.join()
        assert run.exitcode == 0
    same_metrics(histories[0], histories[1], 0)
    same_metrics(histories[0], histories[2], 0)


def test_a_full_disk_costs_time_and_nothing_else(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "_write_whole", full)
    config = quick(epochs=1)
    model = mobilenet.build(config.model, 4, 0, None)
    history = fit(config, material(dataset), model, LocalContext(tmp_path / "a"), reuse(tmp_path))
    same_metrics(train(config, dataset, LocalContext(tmp_path / "b")), history, 0)


def test_a_store_that_cannot_be_changed_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    store = FeatureStore(tmp_path, 1.0)
    assert store.write(VIEW, 14, 0, rows(0))
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    found = store.read(VIEW, 14, 0, (4, 4, 8, 4))
    assert found is not None and torch.equal(found, rows(0))
    file = next(tmp_path.glob("*/cut-*/*.bin"))
    file.write_bytes(b"damaged")
    assert store.read(VIEW, 14, 0, (4, 4, 8, 4)) is None
    full = FeatureStore(tmp_path, (file.stat().st_size + rows(0).nbytes - 1) / 1e9)
    assert not full.write(VIEW, 14, 1, rows(1))  # There is no room to be had.


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1.0)
    assert store.write(VIEW, 14, 0, rows(0))
    folder = next(tmp_path.glob("*/cut-*"))
    old, young = folder / ".00001.bin.7", folder / ".00002.bin.8"
    for file in (old, young):
        file.write_bytes(b"part of a part")
    os.utime(old, (time.time() - 7200,) * 2)
    assert store.write(VIEW, 14, 1, rows(1))
    assert young.exists() and not old.exists()
