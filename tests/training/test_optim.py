import math

import pytest
import torch

from drone.errors import ConfigError
from drone.labels import ClassSet
from drone.model import mobilenet
from drone.model.config import ModelConfig
from drone.presets import PRESETS, get_preset
from drone.training.config import OptimConfig, TrainConfig
from drone.training.epoch_metrics import EpochMetrics
from drone.training.optim import MovingAverage, build_optimizer
from drone.training.schedule import learning_rates


def test_the_cosine_schedule() -> None:
    config = TrainConfig(epochs=10, optim=OptimConfig(head_only_epochs=2, warmup_epochs=1))
    rates = [learning_rates(config, step, steps_per_epoch=10) for step in range(100)]
    head, backbone = ([rate[name] for rate in rates] for name in ("head", "backbone"))
    assert max(head) == pytest.approx(1e-3) and max(backbone) == pytest.approx(2e-4, rel=0.02)
    assert backbone[:20] == [0.0] * 20 and backbone[20] > 0
    assert head[0] < head[5] < head[10] > head[50] > head[99]
    assert head[99] < 1e-6


def test_a_short_run_trains_the_backbone_too() -> None:
    config = TrainConfig(epochs=1, optim=OptimConfig(head_only_epochs=1))
    assert learning_rates(config, 5, steps_per_epoch=10)["backbone"] > 0


def test_the_originals_cyclic_schedule() -> None:
    config = get_preset("seed-attempt-1")
    by_epoch = [learning_rates(config, epoch * 7, steps_per_epoch=7)["head"] for epoch in range(30)]
    assert by_epoch[0] == pytest.approx(1e-3)
    assert by_epoch[8] == pytest.approx(0.1)
    assert by_epoch[16] == pytest.approx(1e-3)
    assert by_epoch[24] == pytest.approx(1e-3 + (0.1 - 1e-3) / 2)
    inside = {learning_rates(config, step, steps_per_epoch=7)["head"] for step in range(56, 63)}
    assert len(inside) == 1  # Stepped by epoch.


def test_the_parameter_groups() -> None:
    model = mobilenet.build(ModelConfig(unfreeze_depth=3), 4, 0, None)
    groups = build_optimizer(model, OptimConfig()).param_groups
    sizes = sum(value.numel() for group in groups for value in group["params"])
    assert sizes == model.parameter_counts().trainable
    for group in groups:
        assert all((value.ndim > 1) == (group["weight_decay"] > 0) for value in group["params"])
    frozen = mobilenet.build(ModelConfig(unfreeze_depth=0), 4, 0, None)
    names = {group["name"] for group in build_optimizer(frozen, OptimConfig()).param_groups}
    assert names == {"head"}


def test_the_moving_average() -> None:
    model = mobilenet.build(ModelConfig(unfreeze_depth=0), 4, 0, None)
    average = MovingAverage(model, decay=0.9)
    start, weight = model.head[1].weight.detach().clone(), model.head[1].weight
    expected = start.clone()
    for step in range(3):
        with torch.no_grad():
            weight.add_(1)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(average.model.head[1].weight, expected)


def test_epoch_metrics() -> None:
    metrics = EpochMetrics(3, torch.device("cpu"))
    labels, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
    metrics.add(torch.tensor(8.0), predicted, labels)
    other = EpochMetrics(3, torch.device("cpu"))
    other.load_state(metrics.state())
    values = other.metrics("x", ClassSet.of(["Flying Birds", "b", "c"]))
    assert values["x/loss"] == 2 and values["x/accuracy"] == 0.5
    assert (
        values["x/recall_Flying Birds"] == 0.5
        and values["x/recall_b"] == 1
        and values["x/recall_c"] == 0
    )
    from sklearn.metrics import f1_score

    assert values["x/macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_the_presets() -> None:
    ours = {"smoke", "frozen", "finetune", "distant", "scratch", "multires"}
    assert set(PRESETS) == ours | {f"seed-attempt-{number}" for number in (1, 2, 3)}
    assert all(preset.config.preset == name for name, preset in PRESETS.items())
    with pytest.raises(ConfigError, match="no preset 'finetun'. Did you mean 'finetune'"):
        get_preset("finetun")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"checkpoint_interval_s": 0.0}, "checkpoint_interval_s"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**changes)
    assert math.isfinite(TrainConfig().optim.lr_head)
