"""Training on pictures of several sizes: real batches, any number of workers, a watchdog."""

from pathlib import Path

import numpy as np
import pytest
import torch

from drone.data.dataset import Dataset
from drone.errors import ConfigError, Interrupted, TrainingError
from drone.model import mobilenet
from drone.model.resizer import STACKS
from drone.training import checkpoint
from drone.training.config import TrainConfig
from drone.training.context import History, LocalContext, Stop
from drone.training.loop import fit
from drone.training.optim import rates
from drone.training.watchdog import Watchdog, fallen_below_start
from tests.training.runs import (
    StoppingContext,
    material,
    quick,
    same_metrics,
    train,
    train_on_two,
)

MIXED = {
    "epochs": 1,
    "batch_size": 7,
    "pixel_budget": 3 * 448 * 448,
    "model": {"unfreeze_depth": 1, "resizer": "stack"},
    # SGD: Adam makes whole steps of rounding errors where a gradient is near zero.
    "optim": {
        "optimizer": "sgd",
        "lr_head": 0.01,
        "lr_backbone": 0.01,
        "resizer_share": 0.1,
        "head_epochs": 0.0,
        "warmup_epochs": 0.0,
    },
}


def mixed_run(**changes: object) -> TrainConfig:
    return quick(**{**MIXED, **changes})


def resizer_of(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(checkpoint.latest(folder)).weights["model"]
    return {name: value for name, value in state.items() if name.startswith("resizer.")}


def test_two_workers_compute_what_one_computes(mixed: Dataset, tmp_path: Path) -> None:
    # Batches of 7 over bins of few pictures: parts that do not divide by two, and parts of one
    # picture, of which the other rank has none.
    config = mixed_run()
    torch.set_num_threads(1)  # As each of the two; several only wait for each other here.
    one = train(config, mixed.at_bins(), LocalContext(tmp_path / "one"), double=True)
    two = train_on_two(config, mixed.at_bins(), tmp_path / "two")
    same_metrics(one, two, 1e-6)
    same_resizers(tmp_path / "one", tmp_path / "two" / "checkpoints")


def same_resizers(one: Path, other: Path) -> None:
    """Asserts that what the resizers learnt is the same, beside rounding."""
    left, right = resizer_of(one), resizer_of(other)
    began = mobilenet.build(mixed_run().model, 4, 0, None).state_dict()
    for name, value in left.items():
        learnt, other_learnt = value - began[name], right[name] - began[name]
        assert (learnt - other_learnt).norm() <= 1e-6 * learnt.norm(), name


def test_a_resizer_learns_for_its_own_size_only(mixed: Dataset, tmp_path: Path) -> None:
    config = mixed_run(model={"unfreeze_depth": 0, "resizer": "residual"})
    began = mobilenet.build(config.model, 4, config.seed, None).state_dict()
    train(config, mixed.at_bins(), LocalContext(tmp_path))
    moved = {
        side
        for side in STACKS
        for name, value in resizer_of(tmp_path).items()
        if name.startswith(f"resizer.sizes.{side}.") and not torch.equal(value, began[name])
    }
    assert moved == {448, 672, 896}  # There are no larger pictures.


def test_an_interrupted_run_goes_on_in_the_middle_of_an_epoch(
    mixed: Dataset, tmp_path: Path
) -> None:
    config = mixed_run()
    whole = train(config, mixed.at_bins(), LocalContext(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(config, mixed.at_bins(), StoppingContext(tmp_path / "stopped", 2, Stop.INTERRUPTED))
    assert checkpoint.load(checkpoint.latest(tmp_path / "stopped")).position.batch == 2
    resumed = train(config, mixed.at_bins(), LocalContext(tmp_path / "stopped"))
    same_metrics(whole, resumed, tolerance=0)
    left, right = resizer_of(tmp_path / "whole"), resizer_of(tmp_path / "stopped")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_accumulated_gradients_are_those_of_the_whole_batch(mixed: Dataset, tmp_path: Path) -> None:
    # The order of the pictures follows the budget, so one step takes them all.
    torch.set_num_threads(1)
    histories = []
    for name, budget in (("one by one", 448 * 448), ("together", 64 * 448 * 448)):
        config = mixed_run(pixel_budget=budget, batch_size=64)
        model = mobilenet.build(config.model, 4, 0, None)
        for layer in model.features.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):  # Else they are estimated from parts.
                layer.running_mean.fill_(1e-3)
                layer.running_var.fill_(0.1)
        context = LocalContext(tmp_path / name)
        histories.append(train(config, mixed.at_bins(), context, double=True, model=model))
    same_metrics(*histories, tolerance=1e-6)
    same_resizers(tmp_path / "one by one", tmp_path / "together")


def test_a_resizer_that_learns_fast_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim.resizer_share is 0.5; above 0, at most 0.1"):
        mixed_run(optim={"resizer_share": 0.5})
    mixed_run(optim={"resizer_share": 1.0, "schedule": "seed-cyclic"})  # As the original had it.


@pytest.mark.parametrize("head_epochs", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("share", [0.05, 0.1])
def test_its_rate_is_never_above_its_share_of_the_heads(head_epochs: float, share: float) -> None:
    config = mixed_run(epochs=12, optim={"head_epochs": head_epochs, "resizer_share": share})
    found = [rates(config, step, 10) for step in range(120)]
    assert all(rate["resizer"] <= share * rate["head"] for rate in found)
    assert all(rate["resizer"] == 0 for rate in found[: int(10 * head_epochs)])
    assert any(rate["resizer"] > 0 for rate in found)


def history(*scores: float) -> History:
    def entry(epoch: int, score: float) -> dict:
        recalls = {f"validation/recall_{name}": score for name in "abc"}
        figures = {"validation/macro_f1": score, "validation/loss": 1.0, "train/loss": 1.0}
        return {"epoch": epoch, "time_ms": epoch, "metrics": {**recalls, **figures}}

    return [entry(number + 1, score) for number, score in enumerate(scores)]


def test_below_its_start_for_some_evaluations_in_a_row() -> None:
    assert fallen_below_start(history(0.7, 0.6, 0.6), 1, 3) is None  # Not yet three.
    assert fallen_below_start(history(0.7, 0.6, 0.8, 0.6, 0.6), 1, 3) is None  # Not in a row.
    assert fallen_below_start(history(0.7, 0.8, 0.6, 0.6, 0.7), 1, 3) is None  # As good as then.
    said = fallen_below_start(history(0.7, 0.8, 0.6, 0.6, 0.5), 1, 3)
    assert said == "below its start: macro F1 0.500 on validation, 0.700 after epoch 1"
    # The start is the last epoch of the head alone.
    assert fallen_below_start(history(0.4, 0.5, 0.8, 0.7, 0.7), 3, 2) is not None
    assert fallen_below_start(history(0.4, 0.5, 0.8, 0.7, 0.7), 2, 2) is None


def test_the_watchdog_names_its_reason_and_may_be_off() -> None:
    config = quick(epochs=9, watchdog=2, optim={"head_epochs": 1.0})
    with pytest.raises(TrainingError, match=r"after epoch 4\. below its start.*--watchdog 0"):
        Watchdog(config, 3).check(history(0.7, 0.8, 0.6, 0.6))
    collapsed = history(0.7, 0.8, 0.9, 0.9)
    for entry in collapsed[2:]:
        entry["metrics"] |= {f"validation/recall_{name}": float(name == "b") for name in "abc"}
    with pytest.raises(TrainingError, match="collapsed: one class"):
        Watchdog(config, 3).check(collapsed)
    diverged = history(0.7, 0.8)
    diverged[1]["metrics"]["validation/loss"] = 9.0
    with pytest.raises(TrainingError, match=r"diverged: a validation loss of 9\.00"):
        Watchdog(config, 3).check(diverged)
    Watchdog(quick(watchdog=0), 3).check(diverged)


def test_the_original_recipe_falls_and_is_stopped_with_a_checkpoint(
    mixed: Dataset, tmp_path: Path
) -> None:
    # Batches of one picture, normalised by themselves, at its rate: nothing is left of the start.
    config = quick(
        epochs=6,
        batch_size=1,
        watchdog=2,
        model={
            "unfreeze_depth": 2,
            "resizer": "stack",
            "resizer_start": "random",
            "head": "seed",
            "batchnorm": "drift",
        },
        optim={
            "optimizer": "sgd",
            "schedule": "seed-cyclic",
            "lr_head": 0.1,
            "lr_backbone": 0.1,
            "resizer_share": 1.0,
            "head_epochs": 0.0,
            "clip_norm": 0.0,
            "ema_decay": 0.0,
        },
    )
    at_bins = mixed.at_bins()
    model = mobilenet.build(config.model, 4, 0, None)
    context = LocalContext(tmp_path)
    with pytest.raises(TrainingError, match="collapsed|below its start|diverged|not finite"):
        fit(config, material(at_bins), model, context)
    assert len(context.history) < config.epochs  # After the last epoch there is nothing to stop.
    assert context.history and checkpoint.latest(tmp_path) is not None
    assert np.isfinite(context.history[0]["metrics"]["train/loss"])
