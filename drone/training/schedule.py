"""Learning-rate schedules: the rate of each parameter group at each step."""

import math

from drone.training.config import TrainConfig

_SEED_CYCLE_EPOCHS = 8
_SEED_RATIO = 100
"""The original's cycle: 8 epochs up from a hundredth of the peak and 8 down."""


def learning_rates(config: TrainConfig, step: int, steps_per_epoch: int) -> dict[str, float]:
    """Learning rates by parameter group ("backbone", "head", "resizer").

    Args:
        config: Config of the run.
        step: Optimiser step, counted from the start of the run.
        steps_per_epoch: Optimiser steps of an epoch.
    """
    optim = config.optim
    peaks = {"backbone": optim.lr_backbone, "head": optim.lr_head}
    if config.model.mixed:
        peaks["resizer"] = optim.lr_head * optim.resizer_lr_ratio
    if optim.schedule == "seed-cyclic":
        factor = _triangular2(step // steps_per_epoch)
        return {name: peak * factor for name, peak in peaks.items()}
    total_steps = config.epochs * steps_per_epoch
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    # A run that is shorter than the head-only phase trains everything from the start.
    head_only = optim.head_only_epochs if optim.head_only_epochs < config.epochs else 0
    rates = {}
    for name, peak in peaks.items():
        start = 0.0 if name == "head" else head_only * steps_per_epoch
        rates[name] = peak * _warm_cosine(step - start, total_steps - start, warmup_steps)
    if "resizer" in rates:  # It starts later than the head, whose rate has fallen by then.
        rates["resizer"] = min(rates["resizer"], rates["head"] * optim.resizer_lr_ratio)
    return rates


def _warm_cosine(step: float, total_steps: float, warmup_steps: float) -> float:
    """Share of the peak: 0 before the start, linear warm-up to 1, then cosine decay to 0."""
    if step < 0:
        return 0.0
    if step < warmup_steps:
        return min(1.0, (step + 1) / (warmup_steps + 1))
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _triangular2(epoch: int) -> float:
    """Cyclical learning rate (Smith 2017, "triangular2"), as a share of the peak."""
    cycle = epoch // (2 * _SEED_CYCLE_EPOCHS)
    distance = abs(epoch / _SEED_CYCLE_EPOCHS - 2 * cycle - 1)
    base = 1 / _SEED_RATIO
    return float(base + (1 - base) * (1 - distance) / 2**cycle)
