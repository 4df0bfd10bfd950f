"""The activation cache: it changes no metric of a run, whatever happens to its files."""

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drone.data.batches import DeviceSplit
from drone.data.dataset import Dataset, open_dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.split import SplitSettings
from drone.data.prepare.write import write_dataset
from drone.model import mobilenet
from drone.training.activation_cache import store as store_module
from drone.training.activation_cache.keys import View, augmented_view_facts, common_facts
from drone.training.activation_cache.source import (
    CachedActivations,
    ComputedActivations,
    ImageSource,
)
from drone.training.activation_cache.store import ActivationStore, CacheSpec
from drone.training.best_epoch import History
from drone.training.context import LocalContext
from drone.training.data import Fold, TrainingData
from drone.training.loop import fit
from tests.conftest import MadeUp
from tests.job_process import FORK_SERVER
from tests.training.short_runs import assert_same_metrics, short_config, train

VIEW = View("a" * 32, 300)


def cache_in(folder: Path, **changes: object) -> CacheSpec:
    return replace(CacheSpec(folder=folder / "features", disk_gb=1.0), **changes)  # type: ignore[arg-type]


def rows(part: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    count = len(VIEW.positions(part))
    return torch.rand((count, 4, 4, 8), generator=torch.Generator().manual_seed(part)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_is_read_as_it_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    store = ActivationStore(tmp_path, 1.0)
    assert [len(VIEW.positions(part)) for part in range(3)] == [128, 128, 44]
    shape = (4, 4, 8, dtype.itemsize)
    for part in range(3):
        assert store.read(VIEW, 14, part, shape) is None
        assert store.write(VIEW, 14, part, rows(part, dtype))
        read = store.read(VIEW, 14, part, shape)
        assert read is not None and torch.equal(read, rows(part, dtype))
    assert store.has_all(VIEW, 14, range(3)) and not store.has_all(VIEW, 15, [0])


@pytest.mark.parametrize("damage", ["cut short", "one bit", "another size"])
def test_a_damaged_part_counts_as_missing(tmp_path: Path, damage: str) -> None:
    store = ActivationStore(tmp_path, 1.0)
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


def test_the_least_recently_read_part_is_evicted_when_the_budget_is_full(tmp_path: Path) -> None:
    size = rows(0).nbytes + 100
    store = ActivationStore(tmp_path, 2.5 * size / 1e9)
    for number in range(2):
        store.write(View(f"{number:032d}", 128), 14, 0, rows(0))
        file = store._file(View(f"{number:032d}", 128), 14, 0)
        store_module.os.utime(file, (number, number))
    store.read(View(f"{0:032d}", 128), 14, 0, (4, 4, 8, 4))  # Now 1 is the least recently read.
    store.write(View(f"{2:032d}", 128), 14, 0, rows(0))
    left = [store.has_all(View(f"{number:032d}", 128), 14, [0]) for number in range(3)]
    assert left == [True, False, True]
    assert store.size_bytes() <= store.budget_bytes
    assert not ActivationStore(tmp_path / "small", 1e-9).write(VIEW, 14, 0, rows(0))


def test_a_part_is_claimed_by_one_process_at_a_time(tmp_path: Path) -> None:
    first, second = ActivationStore(tmp_path, 1.0), ActivationStore(tmp_path, 1.0)
    with first.claim(VIEW, 0, wait=False) as claimed:
        assert claimed
        with second.claim(VIEW, 0, wait=False) as claimed_too:
            assert not claimed_too
        with second.claim(VIEW, 1, wait=False) as claimed_other_part:
            assert claimed_other_part
    with second.claim(VIEW, 0, wait=True) as claimed_later:
        assert claimed_later


@pytest.mark.parametrize("depth", [0, 1, 4, 12])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_activations_give_the_metrics_of_computed_ones(
    dataset: Dataset, tmp_path: Path, depth: int, precision: str
) -> None:
    config = short_config(
        precision=precision,
        model={"unfreeze_depth": depth, "test_time_flip": True, "head_width": 16},
    )
    computed = train(config, dataset, LocalContext(tmp_path / "computed"))
    cache = cache_in(tmp_path, cuts=(9, 17, 19))
    for name in ("fills", "reads"):
        context = LocalContext(tmp_path / name)
        model = mobilenet.build(config.model, 4, config.seed, None)
        assert_same_metrics(
            computed, fit(config, TrainingData.of(dataset), model, context, cache), 0
        )
    cuts = {folder.name for folder in cache.folder.rglob("cut-*")}
    assert {f"cut-{19 - depth:02d}", "cut-09", "cut-17", "cut-19"} == cuts


def test_one_pass_stores_all_cuts(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_in(tmp_path, cuts=(14, 17, 19))
    runs = {}
    for depth in (5, 2, 0):
        config = short_config(epochs=1, model={"unfreeze_depth": depth})
        model = mobilenet.build(config.model, 4, 0, None)
        context = LocalContext(tmp_path / "a")
        runs[depth] = fit(config, TrainingData.of(dataset), model, context, cache)
        (tmp_path / "a").rename(tmp_path / f"a{depth}")
        # From here on everything must come from the cache.
        monkeypatch.setattr(CachedActivations, "_fill", lambda *_: pytest.fail("computed again"))
    for depth, history in runs.items():
        config = short_config(epochs=1, model={"unfreeze_depth": depth})
        assert_same_metrics(
            train(config, dataset, LocalContext(tmp_path / f"b{depth}")), history, 0
        )


def test_a_view_is_named_by_everything_that_decides_its_numbers(
    dataset: Dataset, tmp_path: Path
) -> None:
    def names(seed: int = 0, images_id: str = "f", **changes: object) -> list[str]:
        config = short_config(seed=seed, epochs=4, **changes)
        model = mobilenet.build(config.model, 4, 0, None)
        common = common_facts(config, model, images_id, torch.device("cpu"))
        facts = [augmented_view_facts(common, config, number) for number in range(2)]
        return [View.of(view, 9).name for view in facts]

    reference = names()
    assert len(set(reference)) == 2
    assert names(optim={"lr_head": 0.1}, model={"unfreeze_depth": 5, "head_width": 8}) == reference
    for other in (
        names(seed=1),
        names(images_id="g"),
        names(precision="bf16"),
        names(augment={"strength": 0.25}),
        names(augment={"rotation_deg": 5.0}),
    ):
        assert not set(other) & set(reference)
    without = names(augment={"strength": 0.0})
    assert without[0] == without[1] == names(seed=1, augment={"strength": 0.0})[0]


def test_epochs_share_views_if_there_are_fewer_views(dataset: Dataset, tmp_path: Path) -> None:
    config = short_config(epochs=4, views=2)
    data = TrainingData.of(dataset)
    split = DeviceSplit(data.images, torch.device("cpu"))
    images = ImageSource(config, split, data)
    assert [images.view_of(epoch) for epoch in range(4)] == [0, 1, 0, 1]
    model = mobilenet.build(config.model, 4, 0, None)
    computed = ComputedActivations(model.eval(), images)
    positions = np.arange(20)
    assert torch.equal(computed.train(0, positions), computed.train(2, positions))
    assert not torch.equal(computed.train(0, positions), computed.train(1, positions))


def _run(
    folder: Path, data: Path, name: str, reads: bool, results: "multiprocessing.Queue[object]"
) -> None:
    torch.set_num_threads(1)
    config, dataset = short_config(epochs=2), open_dataset(data)
    model = mobilenet.build(config.model, 4, 0, None)
    context = LocalContext(folder / name)
    cache = cache_in(folder) if reads else None
    results.put(fit(config, TrainingData.of(dataset), model, context, cache))


def fit_with_statistics(folder: Path, data: TrainingData, cache: CacheSpec | None) -> History:
    """Trains a model that has batch statistics, as pretrained weights have them."""
    config = short_config(epochs=2, model={"unfreeze_depth": 1, "test_time_flip": True})
    model = mobilenet.build(config.model, 4, config.seed, None)
    # Without any, they would be those of some training images, and so different in each fold.
    state = {
        name: value + 0.01 if name.endswith("running_mean") else value
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return fit(config, data, model, LocalContext(folder), cache)


def test_every_fold_reads_the_same_views(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, fold: Fold | None, cache: CacheSpec | None) -> History:
        return fit_with_statistics(tmp_path / name, TrainingData.of(dataset, fold), cache)

    cache = cache_in(tmp_path)
    folds = [Fold(number, 3) for number in range(3)]
    run("first", folds[0], cache)
    monkeypatch.setattr(CachedActivations, "_fill", lambda *_: pytest.fail("computed again"))
    for fold in (*folds[1:], None):
        read = run(f"read-{fold}", fold, cache)
        assert_same_metrics(run(f"computed-{fold}", fold, None), read, 0)


def test_after_a_new_split_only_images_that_were_in_test_are_computed(
    dataset: Dataset, made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(
        PrepareSettings(preprocessing=dataset.preprocessing), split=SplitSettings(seed=1)
    )
    planned = plan_dataset([made_up.folder], settings, map_sequentially)
    other = write_dataset(planned, tmp_path / "other", map_sequentially)[0]
    earlier, later = (set(each.development().keys_N.tolist()) for each in (dataset, other))
    assert later - earlier and earlier - later

    cache, computed = cache_in(tmp_path), []
    fit_with_statistics(tmp_path / "first", TrainingData.of(dataset), cache)
    forward = CachedActivations._forward

    def count(self: CachedActivations, activations: torch.Tensor, *rest: Any) -> Any:
        computed.append(len(activations))
        return forward(self, activations, *rest)

    monkeypatch.setattr(CachedActivations, "_forward", count)
    data = TrainingData.of(other)
    read = fit_with_statistics(tmp_path / "read", data, cache)
    # Two augmented views, and of validation the plain and the mirrored one.
    assert sum(computed) == 4 * len(later - earlier)
    assert_same_metrics(fit_with_statistics(tmp_path / "computed", data, None), read, 0)
    computed.clear()
    fit_with_statistics(tmp_path / "again", TrainingData.of(dataset), cache)
    assert not computed


@pytest.mark.slow
def test_concurrent_runs_share_a_cache(dataset: Dataset, tmp_path: Path) -> None:
    results = FORK_SERVER.Queue()
    runs = [
        FORK_SERVER.Process(target=_run, args=(tmp_path, dataset.folder, name, reads, results))
        for name, reads in (("a", True), ("b", True), ("c", False))
    ]
    for run in runs:
        run.start()
    histories = [results.get(timeout=200) for _ in runs]
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert_same_metrics(histories[0], histories[1], 0)
    assert_same_metrics(histories[0], histories[2], 0)


def test_a_full_disk_changes_no_metric(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "_write_atomically", full)
    config = short_config(epochs=1)
    model = mobilenet.build(config.model, 4, 0, None)
    context = LocalContext(tmp_path / "a")
    history = fit(config, TrainingData.of(dataset), model, context, cache_in(tmp_path))
    assert_same_metrics(train(config, dataset, LocalContext(tmp_path / "b")), history, 0)


def test_a_read_only_store_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    store = ActivationStore(tmp_path, 1.0)
    assert store.write(VIEW, 14, 0, rows(0))
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    read = store.read(VIEW, 14, 0, (4, 4, 8, 4))
    assert read is not None and torch.equal(read, rows(0))
    file = next(tmp_path.glob("*/cut-*/*.bin"))
    file.write_bytes(b"damaged")
    assert store.read(VIEW, 14, 0, (4, 4, 8, 4)) is None
    full = ActivationStore(tmp_path, (file.stat().st_size + rows(0).nbytes - 1) / 1e9)
    assert not full.write(VIEW, 14, 1, rows(1))  # There is no room to be had.


def test_the_partial_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, 1.0)
    assert store.write(VIEW, 14, 0, rows(0))
    folder = next(tmp_path.glob("*/cut-*"))
    old, young = folder / ".00001.bin.7", folder / ".00002.bin.8"
    for file in (old, young):
        file.write_bytes(b"part of a part")
    os.utime(old, (time.time() - 7200,) * 2)
    assert store.write(VIEW, 14, 1, rows(1))
    assert young.exists() and not old.exists()
