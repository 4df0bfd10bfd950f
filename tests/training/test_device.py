"""A training step on a device that is not the processor: the host never waits for its values.

The device is torch's "meta", whose tensors have shapes and no values. Whatever would copy a value
to the host, and so wait for all that the device has still to do, raises an error there.
"""

import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from drone.data.dataset import Dataset
from drone.model import mobilenet
from drone.training import inputs, loop
from drone.training.activation_cache import source
from drone.training.config import TrainConfig
from drone.training.context import LocalContext
from drone.training.data import TrainingData
from drone.training.learner import Learner
from tests.training.short_runs import short_config

META = torch.device("meta")

VARIANTS: dict[str, dict[str, Any]] = {
    "head": {"model": {"unfreeze_depth": 0}},
    "last blocks": {"model": {"unfreeze_depth": 5, "head_width": 64, "dropout": 0.2}},
    "all blocks": {"model": {"unfreeze_depth": 19, "batchnorm": "trainable"}},
    "drift": {"model": {"unfreeze_depth": 3, "batchnorm": "drift"}},
    "sgd": {"optim": {"optimizer": "sgd", "schedule": "seed-cyclic", "class_weights": "balanced"}},
    "far views": {"augment": {"strength": 1.0, "distance_p": 0.9, "weather_p": 0.5}},
    "blur and noise": {"augment": {"strength": 1.0, "blur_p": 0.9, "noise_p": 0.9}},
    "codec": {"augment": {"strength": 1.0, "grey_p": 0.9, "infrared_p": 0.9, "jpeg_p": 0.9}},
    "seed": {"model": {"head": "seed"}, "augment": {"elastic_p": 1.0, "cutout_p": 1.0}},
}

pytestmark = pytest.mark.usefixtures("on_meta")


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces what torch has no kernels for on this device, and what happens before the steps."""
    for module in (loop, source):
        monkeypatch.setattr(module, "autocast", lambda precision, device: nullcontext())
    monkeypatch.setattr(inputs, "has_statistics", lambda features: True)
    monkeypatch.setattr(Learner, "evaluated_weights", lambda learner: {})
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda parameters, limit, foreach: clip(parameters, limit, foreach=not foreach),
    )
    for optimizer in (torch.optim.AdamW, torch.optim.SGD):
        unfused = functools.partial(_unfused, optimizer)
        monkeypatch.setattr(torch.optim, optimizer.__name__, unfused)


def _unfused(optimizer: Any, groups: Any, *, fused: bool, **settings: Any) -> Any:
    assert fused  # Only a fused optimiser skips a step on the device.
    created = optimizer(groups, **settings)
    created.step = lambda: None
    return created


def run_on_meta(config: TrainConfig, dataset: Dataset, folder: Path) -> loop._Run:
    """A run whose images, weights and optimiser are on the device."""
    model = mobilenet.build(config.model, len(dataset.classes), config.seed, None)
    context = LocalContext(folder)
    context.device = META
    run = loop._Run(config, TrainingData.of(dataset), model, context, None, "unknown", False)
    images = run.inputs._images.images
    side_px = dataset.preprocessing.side_px
    images._resident = torch.empty(
        (len(images), side_px, side_px, 3), dtype=torch.uint8, device=META
    )
    run.learner.network.train()
    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_never_waits_for_the_device(variant: str, dataset: Dataset, tmp_path: Path) -> None:
    run = run_on_meta(short_config(**VARIANTS[variant]), dataset, tmp_path)
    order = run.inputs.batches.order(0, 0)
    for batch in range(2):
        run._step(0, batch, order[batch])
    trainable = [value for value in run.learner.model.parameters() if value.requires_grad]
    assert all(value.grad is not None and value.grad.device == META for value in trainable)
    # A step that is not finite is skipped on the device, by what the optimiser finds here.
    assert run.learner._optimizer.found_inf.device == META  # type: ignore[attr-defined]


def test_a_step_that_waits_is_found(dataset: Dataset, tmp_path: Path) -> None:
    run = run_on_meta(short_config(), dataset, tmp_path)
    add = run.metrics.add

    def waits(loss_sum: torch.Tensor, *others: torch.Tensor) -> None:
        assert loss_sum.item() >= 0
        add(loss_sum, *others)

    run.metrics.add = waits  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="meta"):
        run._step(0, 0, run.inputs.batches.order(0, 0)[0])
