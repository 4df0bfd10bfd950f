"""Training on training and validation images together, for a number of epochs known beforehand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drone.data.dataset import Dataset
from drone.errors import ConfigError, Interrupted
from drone.training import checkpoint
from drone.training.activation_cache.policy import CacheWorkload, decide
from drone.training.checkpoint import StateDict
from drone.training.context import LocalContext, Stop
from drone.training.data import TrainingData
from tests.training.short_runs import (
    StoppingContext,
    assert_same_metrics,
    short_config,
    train,
    train_on_two_ranks,
)

EVERYTHING: dict[str, Any] = {
    "train_on": "train+validation",
    "calibration": {"temperature": 1.5, "unsure_below": 0.4},
}


def best_weights(folder: Path) -> StateDict:
    newest = checkpoint.latest(folder)
    assert newest is not None
    return checkpoint.load_best(newest)


def assert_same_weights(left: Path, right: Path) -> None:
    weights, others = best_weights(left), best_weights(right)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_every_image_but_those_of_test_is_trained_on(dataset: Dataset, tmp_path: Path) -> None:
    data = TrainingData.of(dataset, None, "train+validation")
    assert len(data.train) == len(dataset.development()) and len(data.validation) == 0
    history = train(short_config(epochs=2, **EVERYTHING), dataset, LocalContext(tmp_path / "a"))
    assert not any(name.startswith("validation") for name in history[-1]["metrics"])
    newest = checkpoint.latest(tmp_path / "a")
    assert newest is not None
    assert checkpoint.read_position(newest)[0].best == {"epoch": 2}


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_a_run_that_stops_is_the_start_of_a_longer_one(
    dataset: Dataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = short_config(epochs=4, **changes)
    whole = train(config, dataset, LocalContext(tmp_path / "whole"))
    short = train(replace(config, stop_epoch=2), dataset, LocalContext(tmp_path / "short"))
    assert len(short) == 2
    assert_same_metrics(whole[:2], short, 0)


def test_the_last_epoch_counts_as_the_best(dataset: Dataset, tmp_path: Path) -> None:
    config = short_config(epochs=4, **EVERYTHING)
    steps = len(TrainingData.of(dataset, None, config.train_on).train) // config.batch_size
    with pytest.raises(Interrupted):
        interrupted = StoppingContext(tmp_path / "whole", 2 * steps, Stop.INTERRUPTED)
        train(config, dataset, interrupted)
    train(replace(config, stop_epoch=2), dataset, LocalContext(tmp_path / "short"))
    assert_same_weights(tmp_path / "whole", tmp_path / "short")


@pytest.mark.parametrize("steps", [1, 5])
def test_a_resumed_run_has_the_same_weights(dataset: Dataset, tmp_path: Path, steps: int) -> None:
    config = short_config(epochs=3, stop_epoch=2, **EVERYTHING)
    whole = train(config, dataset, LocalContext(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(config, dataset, StoppingContext(tmp_path / "stopped", steps, Stop.INTERRUPTED))
    resumed = train(config, dataset, LocalContext(tmp_path / "stopped"))
    assert_same_metrics(whole, resumed, 0)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(dataset: Dataset, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = short_config(
        epochs=1, batch_size=33, optim={"head_only_epochs": 0}, model={"head": "seed"}, **EVERYTHING
    )
    one = train(config, dataset, LocalContext(tmp_path / "one"), double=True)
    two = train_on_two_ranks(config, dataset, tmp_path / "two")
    assert_same_metrics(one, two, 1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3, "stop_epoch": 4}, "stop_epoch is 4; it must be 0 to 3"),
        ({"epochs": -1}, "epochs is -1; it must be at least 1"),
        ({"train_on": "train+validation"}, "as the best.yaml of a study has them"),
        ({"calibration": {"unsure_below": 0.5}}, "set without calibration.temperature"),
        ({"calibration": {"temperature": 9.0}}, "it must be 0.25 to 4, or 0"),
        ({**EVERYTHING, "early_stopping_patience": 2}, "early_stopping_patience needs validation"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        short_config(**changes)


def test_caching_counts_the_epochs_that_are_trained() -> None:
    config = short_config(
        epochs=12, views=4, augment={"strength": 0.5}, model={"unfreeze_depth": 1}
    )
    workload = CacheWorkload(num_train=100, disk_gb=10.0)
    assert "each is read 3 times" in decide(config, workload).reason
    assert not decide(replace(config, stop_epoch=3), workload).use
