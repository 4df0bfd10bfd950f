"""The training loop: its results depend on the configuration and the data alone."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drone.data.dataset import Dataset
from drone.errors import Interrupted, RunError, TrainingError
from drone.model import mobilenet
from drone.training import checkpoint
from drone.training.context import LocalContext, Stop
from drone.training.data import TrainingData
from drone.training.loop import Preempted, fit
from tests.training.short_runs import (
    StoppingContext,
    assert_same_metrics,
    short_config,
    train,
    train_on_two_ranks,
)


def test_loss_falls_and_every_image_counts_once(dataset: Dataset, tmp_path: Path) -> None:
    config = short_config(epochs=6, augment={"strength": 0.0}, optim={"lr_head": 3e-3})
    history = train(config, dataset, LocalContext(tmp_path))
    losses = [entry["metrics"]["train/loss"] for entry in history]
    assert losses[-1] < losses[0] - 0.1
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    recalls = [history[0]["metrics"][f"validation/recall_{k}"] for k in ("FB", "LQC", "SQC", "WD")]
    counts = dataset.split("validation").counts_K
    right = sum(recall * count for recall, count in zip(recalls, counts, strict=True))
    assert math.isclose(right / counts.sum(), history[0]["metrics"]["validation/accuracy"])


def test_same_seed_gives_the_same_run(dataset: Dataset, tmp_path: Path) -> None:
    runs = [train(short_config(), dataset, LocalContext(tmp_path / name)) for name in "ab"]
    assert_same_metrics(*runs, tolerance=0)
    other = train(short_config(seed=1), dataset, LocalContext(tmp_path / "c"))
    assert other[0]["metrics"]["train/loss"] != runs[0][0]["metrics"]["train/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("batchnorm", ["stored", "drift"])
def test_two_workers_have_the_metrics_of_one(
    dataset: Dataset, tmp_path: Path, batchnorm: str
) -> None:
    # A batch of 33 does not divide by two: the ranks get 17 and 16 images. In double precision,
    # since Adam makes whole steps of the rounding errors where a gradient is near zero.
    config = short_config(
        epochs=1,
        batch_size=33,
        model={"batchnorm": batchnorm, "head": "seed"},
        optim={"head_only_epochs": 0},
    )
    torch.set_num_threads(1)  # As on each rank; where cores are busy, threads wait for each other.
    one = train(config, dataset, LocalContext(tmp_path / "one"), double=True)
    two = train_on_two_ranks(config, dataset, tmp_path / "two")
    assert_same_metrics(one, two, 1e-6)


@pytest.mark.parametrize("after_steps", [1, 3, 4])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    dataset: Dataset, tmp_path: Path, after_steps: int
) -> None:
    whole = train(short_config(), dataset, LocalContext(tmp_path / "whole"))
    stopped = StoppingContext(tmp_path / "stopped", after_steps, Stop.INTERRUPTED)
    with pytest.raises(Interrupted, match="stopped; its checkpoint is kept"):
        train(short_config(), dataset, stopped)
    resumed = train(short_config(), dataset, LocalContext(tmp_path / "stopped"))
    assert_same_metrics(whole, resumed, tolerance=0)
    best = [
        checkpoint.load_best(checkpoint.latest(tmp_path / name)) for name in ("whole", "stopped")
    ]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_a_preempted_run_writes_a_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        train(short_config(), dataset, StoppingContext(tmp_path, 2, Stop.PREEMPTED))
    position, _ = checkpoint.read_position(checkpoint.latest(tmp_path))
    assert (position.epoch, position.batch) == (0, 2)


def test_checkpoints_are_written_at_intervals_within_an_epoch(
    dataset: Dataset, tmp_path: Path
) -> None:
    class Counting(LocalContext):
        positions: tuple[tuple[int, int], ...] = ()

        def report(self, history, folder) -> None:  # type: ignore[no-untyped-def]
            position, _ = checkpoint.read_position(folder)
            self.positions += ((position.epoch, position.batch),)
            super().report(history, folder)

    context = Counting(tmp_path)
    train(short_config(epochs=1, checkpoint_interval_s=1e-6), dataset, context)
    steps = math.ceil(len(dataset.split("train")) / 32)
    assert context.positions == (*((0, batch) for batch in range(1, steps)), (1, 0))


def test_a_loss_that_is_not_finite_names_epoch_and_step(dataset: Dataset, tmp_path: Path) -> None:
    config = short_config(
        optim={"optimizer": "sgd", "lr_head": 10.0, "lr_backbone": 10.0, "max_grad_norm": 0.0}
    )
    model = mobilenet.build(config.model, 4, 0, None)
    with torch.no_grad():
        model.head[1].weight.mul_(1e38)
    with pytest.raises(TrainingError, match=r"not finite in epoch 1, step \d+.*--optim.lr-head"):
        fit(config, TrainingData.of(dataset), model, LocalContext(tmp_path))


def test_a_checkpoint_of_another_data_set_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = short_config(epochs=1)
    train(config, dataset, LocalContext(tmp_path))
    other = replace(TrainingData.of(dataset), fingerprint="0" * 64)
    model = mobilenet.build(config.model, 4, 0, None)
    message = (
        rf"trained on the data set {dataset.fingerprint[:12]}, this one is 0{{12}}\. Resume with"
    )
    with pytest.raises(RunError, match=message):
        fit(config, other, model, LocalContext(tmp_path))


def test_frozen_blocks_do_not_change(dataset: Dataset, tmp_path: Path) -> None:
    config = short_config(
        epochs=1, batch_size=16, optim={"head_only_epochs": 0.0, "lr_backbone": 1e-2}
    )
    model = mobilenet.build(config.model, 4, 0, None)
    fit(config, TrainingData.of(dataset), model, LocalContext(tmp_path / "first"))
    # The statistics of random weights are estimated once, before the first step.
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(
        short_config(epochs=1, batch_size=16),
        TrainingData.of(dataset),
        model,
        LocalContext(tmp_path / "again"),
    )
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    frozen = {f"features.{block}" for block in range(config.model.cut)}
    assert changed
    assert not {name for name in changed if ".".join(name.split(".")[:2]) in frozen}


def test_every_image_is_in_an_epoch_and_every_batch_is_full(dataset: Dataset) -> None:
    from drone.data.batches import epoch_order

    order = epoch_order(count=10, batch_size=4, seed=0, epoch=0)
    assert order.shape == (3, 4)
    assert sorted(np.unique(order)) == list(range(10))
