"""The optimiser, and the exponential moving average of the weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from drone.model.mobilenet import Classifier
from drone.training.config import OptimConfig


def build_optimizer(model: Classifier, config: OptimConfig) -> torch.optim.Optimizer:
    """An optimiser over the trainable parameters, in groups named "backbone", "head", "resizer".

    The learning rate is 0 here: the schedule sets the rate of every group before each step.
    """
    groups: list[dict[str, Any]] = []
    modules: dict[str, nn.Module] = {"backbone": model.trainable_blocks, "head": model.head}
    if model.resizer is not None:
        modules["resizer"] = model.resizer
    for name, module in modules.items():
        parameters = [value for value in module.parameters() if value.requires_grad]
        if config.optimizer == "sgd":
            groups.append({"params": parameters, "name": name})
            continue
        # Decay would pull a resizer's kernels from the average of the pixels towards black.
        decayed = [value for value in parameters if value.ndim > 1 and name != "resizer"]
        exempt = [value for value in parameters if value.ndim <= 1 or name == "resizer"]
        groups.append({"params": decayed, "name": name})
        groups.append({"params": exempt, "name": name, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    # lr=0, so that a missing call of `set_learning_rates` trains nothing rather than at 1e-3.
    # Fused, because only fused optimisers can skip a step on the GPU (`finite_check`).
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=config.weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        groups,
        lr=0.0,
        momentum=0.9,
        nesterov=True,
        weight_decay=config.weight_decay,
        fused=True,
    )
    # With zeros, as they would start: the fused step refuses parameters of which some have
    # momentum and others, used for the first time, have none yet.
    for group in optimizer.param_groups:
        for value in group["params"]:
            optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)
    return optimizer


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: dict[str, float]) -> None:
    """Sets the learning rate of each parameter group by its name."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]


class MovingAverage:
    """Exponential moving average of a model's weights (Polyak and Juditsky 1992).

    It starts as the initial weights and follows faster in the first steps: the decay of step t is
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
        averages, values = _trainable(self.model), _trainable(model)
        torch._foreach_lerp_(averages, values, 1 - decay)
        # Copied, since buffers include counters of batches, whose mean has no meaning.
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(value)


def _trainable(model: nn.Module) -> list[Tensor]:
    return [value.data for value in model.parameters() if value.requires_grad]
