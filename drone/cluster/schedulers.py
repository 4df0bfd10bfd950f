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
    """Returns a scheduler by name: "asha" (successive halving), "median" or "none".

    No trial is pruned before the head-only epochs and the warm-up are over and one more epoch has
    shown their effect.
    """
    grace_epochs = _grace_epochs(base, space)
    # A grace period of the whole run leaves nothing to prune.
    if name == "none" or grace_epochs >= base.epochs:
        return schedulers.FIFOScheduler()
    if name == "median":
        return schedulers.MedianStoppingRule(
            time_attr=TIME,
            metric=METRIC,
            mode="max",
            grace_period=grace_epochs,
            # The median of fewer trials says little.
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
    """Returns the number of epochs before which no trial is pruned."""
    optim = base.optim
    phases = {
        "optim.head_only_epochs": optim.head_only_epochs,
        "optim.warmup_epochs": optim.warmup_epochs,
    }
    for name in phases:
        if name in space:
            # The longest that any trial may get: a scheduler has one grace period for all.
            phases[name] = max(space[name].extremes())
    return math.ceil(sum(phases.values())) + 1


class _PastTrial:
    """The part of a Ray Tune trial that schedulers read."""

    status = "RUNNING"

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class _NoController:
    """The part of Ray Tune's controller that schedulers read; no trial is waiting."""

    def get_live_trials(self) -> list[Any]:
        return []


def replay(scheduler: Scheduler, trial_id: str, record: TrialRecord) -> bool:
    """Replays a trial's epochs of an earlier attempt to a new scheduler.

    Returns:
        Whether the scheduler stops the trial after the last of these epochs.
    """
    # Ray Tune cannot save a scheduler's rungs, so each epoch is replayed to a new one.
    trial, controller = _PastTrial(trial_id), _NoController()
    scheduler.on_trial_add(controller, trial)
    for entry in record.history:
        result = {TIME: entry["epoch"], METRIC: entry["metrics"]["objective"]}
        decision = scheduler.on_trial_result(controller, trial, result)
        if decision == Scheduler.STOP:  # It expects no further results of this trial.
            return entry is record.history[-1]
    return False
