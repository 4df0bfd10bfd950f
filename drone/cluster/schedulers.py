"""Schedulers: early pruning of trials, by successive halving or median stopping."""

import math
from typing import Any, TypeAlias

from ray.tune import schedulers

from drone.search.domain import Space
from drone.search.study import TrialRecord
from drone.training.config import TrainConfig

Scheduler: TypeAlias = schedulers.TrialScheduler
"""Decides after each epoch of a trial whether it is pruned."""

METRIC, TIME = "objective", "epoch"
_REDUCTION_FACTOR = 2
"""Of the trials that reach a rung, one in this many continues. A factor of three pruned every trial
of strong augmentation, which learns later."""


def make_scheduler(name: str, base: TrainConfig, space: Space) -> Scheduler:
    """A scheduler by name: "asha" (successive halving), "median" or "none".

    No trial is pruned before the head-only epochs and the warm-up are over and one more epoch has
    shown their effect.
    """
    grace_epochs = _grace_epochs(base, space)
    if name == "none" or grace_epochs >= base.epochs:
        return schedulers.FIFOScheduler()
    if name == "median":
        return schedulers.MedianStoppingRule(
            time_attr=TIME,
            metric=METRIC,
            mode="max",
            grace_period=grace_epochs,
            min_samples_required=4,
        )
    return schedulers.AsyncHyperBandScheduler(
        time_attr=TIME,
        metric=METRIC,
        mode="max",
        max_t=base.epochs,
        grace_period=grace_epochs,
        reduction_factor=_REDUCTION_FACTOR,
    )


def _grace_epochs(base: TrainConfig, space: Space) -> int:
    """Epochs that no trial is denied."""
    optim = base.optim
    phases = {
        "optim.head_only_epochs": optim.head_only_epochs,
        "optim.warmup_epochs": optim.warmup_epochs,
    }
    for name in phases:
        if name in space:
            phases[name] = max(space[name].extremes())
    return math.ceil(sum(phases.values())) + 1


class _PastTrial:
    """As much of a Ray Tune trial as a scheduler reads."""

    status = "RUNNING"

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class _NoController:
    """As much of Ray Tune's controller as a scheduler reads: no trial is waiting."""

    def get_live_trials(self) -> list[Any]:
        return []


def replay(scheduler: Scheduler, trial_id: str, record: TrialRecord) -> bool:
    """Tells a new scheduler of a trial's epochs in an earlier attempt.

    Returns:
        Whether it would end the trial after the last of them.
    """
    trial, controller = _PastTrial(trial_id), _NoController()
    scheduler.on_trial_add(controller, trial)
    for entry in record.history:
        result = {TIME: entry["epoch"], METRIC: entry["metrics"]["objective"]}
        decision = scheduler.on_trial_result(controller, trial, result)
        if decision == Scheduler.STOP:  # It expects no further results of this trial.
            return entry is record.history[-1]
    return False
