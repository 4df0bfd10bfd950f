"""Optimiser, learning rates and the moving average of the weights."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from drone.model.mobilenet import Classifier
from drone.training.config import OptimConfig, TrainConfig

_SEED_CYCLE_EPOCHS = 8
_SEED_RATIO = 100
"""The original's cycle: 8 epochs up from a hundredth of the peak and 8 down."""


def build_optimizer(model: Classifier, config: OptimConfig) -> torch.optim.Optimizer:
    """An optimiser over what learns, in groups named "backbone", "head" and "resizer".

    Rates are set before each step by `set_rates`.
    """
    groups: list[dict[str, Any]] = []
    modules: dict[str, nn.Module] = {"backbone": model.learning, "head": model.head}
    if model.resizer is not None:
        modules["resizer"] = model.resizer
    for name, module in modules.items():
        parameters = [value for value in module.parameters() if value.requires_grad]
        if config.optimizer == "sgd":
            groups.append({"params": parameters, "name": name})
            continue
        # Decay would pull a resizer's kernels from the average to black.
        decays = [value.ndim > 1 and name != "resizer" for value in parameters]
        decayed = [value for value, yes in zip(parameters, decays, strict=True) if yes]
        others = [value for value, yes in zip(parameters, decays, strict=True) if not yes]
        groups.append({"params": decayed, "name": name})
        groups.append({"params": others, "name": name, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    decay = config.weight_decay
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=0.0, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
        )
        # From the start, as they would begin: the fused step takes no parameters of which some
        # have momentum and others, first used now, have none yet.
        for group in optimizer.param_groups:
            for value in group["params"]:
                optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)
        return optimizer
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=decay, fused=True)


def rates(config: TrainConfig, step: int, steps_per_epoch: int) -> dict[str, float]:
    """Learning rates of all groups in a step, counted from the start of the run."""
    optim = config.optim
    peaks = {"backbone": optim.lr_backbone, "head": optim.lr_head}
    if config.model.mixed:
        peaks["resizer"] = optim.lr_head * optim.resizer_share
    if optim.schedule == "seed-cyclic":
        factor = _triangular2(step // steps_per_epoch)
        return {name: peak * factor for name, peak in peaks.items()}
    total = config.epochs * steps_per_epoch
    warmup = optim.warmup_epochs * steps_per_epoch
    # In a run shorter than the head's own epochs everything learns from the start.
    head_epochs = optim.head_epochs if optim.head_epochs < config.epochs else 0
    found = {
        name: peak * _warm_cosine(step - start, total - start, warmup)
        for name, peak in peaks.items()
        for start in [0.0 if name == "head" else head_epochs * steps_per_epoch]
    }
    if "resizer" in found:  # It starts later than the head, whose rate falls meanwhile.
        found["resizer"] = min(found["resizer"], found["head"] * optim.resizer_share)
    return found


def _warm_cosine(step: float, total: float, warmup: float) -> float:
    """0 before the start, up to 1 over the warm-up, then a half cosine to 0 at the end."""
    if step < 0:
        return 0.0
    if step < warmup:
        return min(1.0, (step + 1) / (warmup + 1))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def _triangular2(epoch: int) -> float:
    """Cyclical learning rate (Smith 2017, "triangular2"), as a share of the peak."""
    cycle = epoch // (2 * _SEED_CYCLE_EPOCHS)
    distance = abs(epoch / _SEED_CYCLE_EPOCHS - 2 * cycle - 1)
    base = 1 / _SEED_RATIO
    return float(base + (1 - base) * (1 - distance) / 2**cycle)


def set_rates(optimizer: torch.optim.Optimizer, by_name: dict[str, float]) -> None:
    """Gives each group the rate of its name."""
    for group in optimizer.param_groups:
        group["lr"] = by_name[group["name"]]


class MovingAverage:
    """Exponential moving average of a model's weights (Polyak and Juditsky 1992).

    It begins as the first weights and follows faster in the first steps: the decay of step t is
    at most (1 + t) / (10 + t).
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        """Copies the model."""
        self.model = copy.deepcopy(model).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = _learned(self.model), _learned(model)
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(value)


def _learned(model: nn.Module) -> list[Tensor]:
    return [value.data for value in model.parameters() if value.requires_grad]
