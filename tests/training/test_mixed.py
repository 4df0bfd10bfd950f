"""Training on images of several sizes, on any number of workers, and early stopping."""

from pathlib import Path

import numpy as np
import pytest
import torch

from drone.data.dataset import Dataset
from drone.errors import ConfigError, Interrupted, TrainingError
from drone.model import mobilenet
from drone.model.resizer import STACKS
from drone.training import checkpoint
from drone.training.best_epoch import History
from drone.training.config import TrainConfig
from drone.training.context import LocalContext, Stop
from drone.training.data import TrainingData
from drone.training.early_stopping import EarlyStopping, worse_than_start
from drone.training.loop import fit
from drone.training.schedule import learning_rates
from tests.training.short_runs import (
    StoppingContext,
    assert_same_metrics,
    short_config,
    train,
    train_on_two_ranks,
)

_MIXED = {
    "epochs": 1,
    "batch_size": 7,
    "pixel_budget": 3 * 448 * 448,
    "model": {"unfreeze_depth": 1, "resizer": "stack"},
    # SGD: Adam makes whole steps of rounding errors where a gradient is near zero.
    "optim": {
        "optimizer": "sgd",
        "lr_head": 0.01,
        "lr_backbone": 0.01,
        "resizer_lr_ratio": 0.1,
        "head_only_epochs": 0.0,
        "warmup_epochs": 0.0,
    },
}


def mixed_config(**changes: object) -> TrainConfig:
    return short_config(**{**_MIXED, **changes})


def resizer_weights(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(checkpoint.latest(folder))[2].weights["model"]
    return {name: value for name, value in state.items() if name.startswith("resizer.")}


@pytest.mark.slow
def test_two_workers_train_what_one_trains(mixed: Dataset, tmp_path: Path) -> None:
    # Batches of 7 over bins of few images: parts that do not divide by two, and parts of one
    # image, of which the other rank has none.
    config = mixed_config()
    torch.set_num_threads(1)  # As each of the two; several only wait for each other here.
    one = train(config, mixed.at_bins(), LocalContext(tmp_path / "one"), double=True)
    two = train_on_two_ranks(config, mixed.at_bins(), tmp_path / "two")
    assert_same_metrics(one, two, 1e-6)
    assert_same_resizers(tmp_path / "one", tmp_path / "two" / "checkpoints")


def assert_same_resizers(one: Path, other: Path) -> None:
    """Asserts that two runs changed their resizers alike, rounding aside."""
    left, right = resizer_weights(one), resizer_weights(other)
    initial = mobilenet.build(mixed_config().model, 4, 0, None).state_dict()
    for name, value in left.items():
        change, other_change = value - initial[name], right[name] - initial[name]
        assert (change - other_change).norm() <= 1e-6 * change.norm(), name


def test_each_size_trains_its_own_resizer_only(mixed: Dataset, tmp_path: Path) -> None:
    config = mixed_config(model={"unfreeze_depth": 0, "resizer": "residual"})
    initial = mobilenet.build(config.model, 4, config.seed, None).state_dict()
    train(config, mixed.at_bins(), LocalContext(tmp_path))
    moved = {
        side
        for side in STACKS
        for name, value in resizer_weights(tmp_path).items()
        if name.startswith(f"resizer.sizes.{side}.") and not torch.equal(value, initial[name])
    }
    assert moved == {448, 672, 896}  # There are no larger images.


def test_an_interrupted_run_resumes_in_the_middle_of_an_epoch(
    mixed: Dataset, tmp_path: Path
) -> None:
    config = mixed_config()
    whole = train(config, mixed.at_bins(), LocalContext(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(config, mixed.at_bins(), StoppingContext(tmp_path / "stopped", 2, Stop.INTERRUPTED))
    position, _ = checkpoint.read_position(checkpoint.latest(tmp_path / "stopped"))
    assert position.batch == 2
    resumed = train(config, mixed.at_bins(), LocalContext(tmp_path / "stopped"))
    assert_same_metrics(whole, resumed, tolerance=0)
    left, right = resizer_weights(tmp_path / "whole"), resizer_weights(tmp_path / "stopped")
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_accumulated_gradients_equal_those_of_the_whole_batch(
    mixed: Dataset, tmp_path: Path
) -> None:
    # The order of the images follows the budget, so one step takes them all.
    torch.set_num_threads(1)
    histories = []
    for name, budget in (("one by one", 448 * 448), ("together", 64 * 448 * 448)):
        config = mixed_config(pixel_budget=budget, batch_size=64)
        model = mobilenet.build(config.model, 4, 0, None)
        for layer in model.features.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):  # Else they are estimated from parts.
                layer.running_mean.fill_(1e-3)
                layer.running_var.fill_(0.1)
        context = LocalContext(tmp_path / name)
        histories.append(train(config, mixed.at_bins(), context, double=True, model=model))
    assert_same_metrics(*histories, tolerance=1e-6)
    assert_same_resizers(tmp_path / "one by one", tmp_path / "together")


def test_a_high_learning_rate_of_the_resizer_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"optim.resizer_lr_ratio is 0.5; .* above 0 and at most 0.1\."
    ):
        mixed_config(optim={"resizer_lr_ratio": 0.5})
    mixed_config(optim={"resizer_lr_ratio": 1.0, "schedule": "seed-cyclic"})  # As in the original.


@pytest.mark.parametrize("head_only_epochs", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("ratio", [0.05, 0.1])
def test_the_resizers_learning_rate_stays_below_its_ratio_of_the_heads(
    head_only_epochs: float, ratio: float
) -> None:
    config = mixed_config(
        epochs=12, optim={"head_only_epochs": head_only_epochs, "resizer_lr_ratio": ratio}
    )
    rates = [learning_rates(config, step, 10) for step in range(120)]
    assert all(rate["resizer"] <= ratio * rate["head"] for rate in rates)
    assert all(rate["resizer"] == 0 for rate in rates[: int(10 * head_only_epochs)])
    assert any(rate["resizer"] > 0 for rate in rates)


def history(*scores: float) -> History:
    def entry(epoch: int, score: float) -> dict:
        metrics = {"validation/macro_f1": score, "validation/loss": 1.0, "train/loss": 1.0}
        metrics |= {"validation/accuracy": score, "validation/predicted_classes": 3}
        return {"epoch": epoch, "time_ms": epoch, "metrics": metrics}

    return [entry(number + 1, score) for number, score in enumerate(scores)]


def test_worse_than_at_its_start_in_consecutive_evaluations() -> None:
    assert worse_than_start(history(0.7, 0.6, 0.6), 1, 3) is None  # Not yet three.
    assert worse_than_start(history(0.7, 0.6, 0.8, 0.6, 0.6), 1, 3) is None  # Not in a row.
    assert (
        worse_than_start(history(0.7, 0.8, 0.6, 0.6, 0.7), 1, 3) is None
    )  # As good as at the start.
    assert worse_than_start(history(0.7, 0.8, 0.6, 0.6, 0.5), 1, 3) == (
        "worse than at its start: validation macro F1 is 0.500, it was 0.700 after epoch 1"
    )
    # The start is the last epoch of the head alone.
    assert worse_than_start(history(0.4, 0.5, 0.8, 0.7, 0.7), 3, 2) is not None
    assert worse_than_start(history(0.4, 0.5, 0.8, 0.7, 0.7), 2, 2) is None


def test_early_stopping_names_its_reason_and_can_be_disabled() -> None:
    config = short_config(epochs=9, early_stopping_patience=2, optim={"head_only_epochs": 1.0})
    with pytest.raises(
        TrainingError, match=r"after epoch 4: worse than at its start.*--early-stopping-patience 0"
    ):
        EarlyStopping(config, 3).check(history(0.7, 0.8, 0.6, 0.6))
    collapsed = history(0.7, 0.8, 0.9, 0.9)
    for entry in collapsed[2:]:
        entry["metrics"]["validation/predicted_classes"] = 1
    with pytest.raises(TrainingError, match="collapsed: a single class"):
        EarlyStopping(config, 3).check(collapsed)
    diverged = history(0.7, 0.8)
    diverged[1]["metrics"]["validation/loss"] = 9.0
    with pytest.raises(TrainingError, match=r"diverged: the validation loss is 9\.00"):
        EarlyStopping(config, 3).check(diverged)
    EarlyStopping(short_config(early_stopping_patience=0), 3).check(diverged)


def test_early_stopping_ends_the_original_recipe_and_leaves_a_checkpoint(
    mixed: Dataset, tmp_path: Path
) -> None:
    # Batches of one image, normalised by themselves, at its rate: nothing is left of the start.
    config = short_config(
        epochs=6,
        batch_size=1,
        early_stopping_patience=2,
        model={
            "unfreeze_depth": 2,
            "resizer": "stack",
            "resizer_init": "random",
            "head": "seed",
            "batchnorm": "drift",
        },
        optim={
            "optimizer": "sgd",
            "schedule": "seed-cyclic",
            "lr_head": 0.1,
            "lr_backbone": 0.1,
            "resizer_lr_ratio": 1.0,
            "head_only_epochs": 0.0,
            "max_grad_norm": 0.0,
            "ema_decay": 0.0,
        },
    )
    model = mobilenet.build(config.model, 4, 0, None)
    context = LocalContext(tmp_path)
    with pytest.raises(
        TrainingError, match="collapsed|worse than at its start|diverged|not finite"
    ):
        fit(config, TrainingData.of(mixed.at_bins()), model, context)
    assert len(context.history) < config.epochs  # After the last epoch there is nothing to stop.
    assert context.history and checkpoint.latest(tmp_path) is not None
    assert np.isfinite(context.history[0]["metrics"]["train/loss"])
