"""The loop: results that depend on the configuration alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from drone.data.dataset import Dataset
from drone.errors import Interrupted, RunError, TrainingError
from drone.model import mobilenet
from drone.training import checkpoint
from drone.training.context import LocalContext, Stop
from drone.training.loop import Preempted, fit
from tests.training.runs import (
    StoppingContext,
    material,
    quick,
    same_metrics,
    train,
    train_on_two,
)


def test_loss_falls_and_every_picture_counts_once(dataset: Dataset, tmp_path: Path) -> None:
    config = quick(epochs=6, augment={"strength": 0.0}, optim={"lr_head": 3e-3})
    history = train(config, dataset, LocalContext(tmp_path))
    losses = [entry["metrics"]["train/loss"] for entry in history]
    assert losses[-1] < losses[0] - 0.1
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    recalls = [history[0]["metrics"][f"validation/recall_{k}"] for k in ("FB", "LQC", "SQC", "WD")]
    counts = dataset.split("validation").counts_K
    right = sum(recall * count for recall, count in zip(recalls, counts, strict=True))
    assert math.isclose(right / counts.sum(), history[0]["metrics"]["validation/accuracy"])


def test_same_seed_gives_the_same_run(dataset: Dataset, tmp_path: Path) -> None:
    runs = [train(quick(), dataset, LocalContext(tmp_path / name)) for name in "ab"]
    same_metrics(*runs, tolerance=0)
    other = train(quick(seed=1), dataset, LocalContext(tmp_path / "c"))
    assert other[0]["metrics"]["train/loss"] != runs[0][0]["metrics"]["train/loss"]


@pytest.mark.parametrize("batchnorm", ["stored", "drift"])
def test_two_workers_compute_what_one_computes(
    dataset: Dataset, tmp_path: Path, batchnorm: str
) -> None:
    # A batch of 33 does not divide by two: the ranks get 17 and 16 pictures. In double precision,
    # since Adam makes whole steps of the rounding errors where a gradient is near zero.
    config = quick(batch_size=33, model={"batchnorm": batchnorm, "head": "seed"})
    one = train(config, dataset, LocalContext(tmp_path / "one"), double=True)
    two = train_on_two(config, dataset, tmp_path / "two")
    same_metrics(one, two, 1e-6)


@pytest.mark.parametrize("after_steps", [1, 3, 4])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    dataset: Dataset, tmp_path: Path, after_steps: int
) -> None:
    whole = train(quick(), dataset, LocalContext(tmp_path / "whole"))
    stopped = StoppingContext(tmp_path / "stopped", after_steps, Stop.INTERRUPTED)
    with pytest.raises(Interrupted, match="--resume"):
        train(quick(), dataset, stopped)
    resumed = train(quick(), dataset, LocalContext(tmp_path / "stopped"))
    same_metrics(whole, resumed, tolerance=0)
    best = [
        checkpoint.load_best(checkpoint.latest(tmp_path / name)) for name in ("whole", "stopped")
    ]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_a_preempted_run_writes_a_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        train(quick(), dataset, StoppingContext(tmp_path, 2, Stop.PREEMPTED))
    position, _ = checkpoint.read_position(checkpoint.latest(tmp_path))
    assert (position.epoch, position.batch) == (0, 2)


def test_a_timer_writes_checkpoints_within_an_epoch(dataset: Dataset, tmp_path: Path) -> None:
    class Counting(LocalContext):
        positions: tuple[tuple[int, int], ...] = ()

        def report(self, history, folder) -> None:  # type: ignore[no-untyped-def]
            position, _ = checkpoint.read_position(folder)
            self.positions += ((position.epoch, position.batch),)
            super().report(history, folder)

    context = Counting(tmp_path)
    train(quick(epochs=1, checkpoint_every_s=1e-6), dataset, context)
    steps = math.ceil(len(dataset.split("train")) / 32)
    assert context.positions == (*((0, batch) for batch in range(1, steps)), (1, 0))


def test_a_loss_that_is_not_finite_names_epoch_and_step(dataset: Dataset, tmp_path: Path) -> None:
    config = quick(
        optim={"optimizer": "sgd", "lr_head": 10.0, "lr_backbone": 10.0, "clip_norm": 0.0}
    )
    model = mobilenet.build(config.model, 4, 0, None)
    with torch.no_grad():
        model.head[1].weight.mul_(1e38)
    with pytest.raises(TrainingError, match=r"not finite in epoch 1, step \d+.*--optim.lr-head"):
        fit(config, material(dataset), model, LocalContext(tmp_path))


def test_another_data_set_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = quick(epochs=1)
    train(config, dataset, LocalContext(tmp_path))
    other = material(dataset)
    object.__setattr__(other, "fingerprint", "0" * 64)
    model = mobilenet.build(config.model, 4, 0, None)
    with pytest.raises(RunError, match="Resume with the data set"):
        fit(config, other, model, LocalContext(tmp_path))


def test_frozen_blocks_do_not_change(dataset: Dataset, tmp_path: Path) -> None:
    config = quick(epochs=1, batch_size=16, optim={"head_epochs": 0.0, "lr_backbone": 1e-2})
    model = mobilenet.build(config.model, 4, 0, None)
    fit(config, material(dataset), model, LocalContext(tmp_path / "first"))
    # The statistics of random weights are estimated once, before the first step.
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(quick(epochs=1, batch_size=16), material(dataset), model, LocalContext(tmp_path / "again"))
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    frozen = {f"features.{block}" for block in range(config.model.cut)}
    assert changed
    assert not {name for name in changed if ".".join(name.split(".")[:2]) in frozen}


def test_more_workers_than_pictures_in_the_last_batch(dataset: Dataset) -> None:
    from drone.data.batches import epoch_order

    order = epoch_order(count=10, batch_size=4, seed=0, epoch=0)
    assert order.shape == (3, 4)
    assert sorted(np.unique(order)) == list(range(10))
