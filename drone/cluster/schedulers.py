"""Pruning by the schedulers of Ray Tune: successive halving, or the median of the others."""

import math
from typing import Any, Protocol

from ray.tune import schedulers

from drone.search.domain import Space
from drone.search.race import Pruned, Race
from drone.search.scorer import Scorer
from drone.search.scoring import sign
from drone.search.study import TrialRecord
from drone.training.config import TrainConfig

_METRIC, _TIME = "score", "epoch"
_REDUCTION_FACTOR = 2
"""Of the trials that reach a rung, one in this many continues. A factor of three pruned every trial
of strong augmentation, which learns later."""


class Pruner(Protocol):
    """Decides after each epoch of a trial whether it ends early."""

    @property
    def fold_by_fold(self) -> bool:
        """Whether a trial waits after each fold until others have come as far."""

    def judge(self, record: TrialRecord) -> Pruned | None:
        """Takes a trial's newest epoch; returns why the trial ends, None if it continues.

        A trial that has waited is judged again when its turn comes, by all that have come as far.
        """

    def replay(self, record: TrialRecord) -> Pruned | None:
        """Takes the epochs of an earlier attempt; returns what `judge` says of the last one."""


def make_pruner(name: str, base: TrainConfig, space: Space, scorer: Scorer) -> Pruner:
    """Returns a pruner by name: "race", "asha" (successive halving), "median" or "none".

    No trial is pruned before the head-only epochs and the warm-up are over and one more epoch has
    shown their effect.
    """
    grace_epochs = _grace_epochs(base, space)
    if name == "race":
        return Race(scorer, grace_epochs)
    mode = "max" if sign(scorer.objective) > 0 else "min"
    num_epochs = base.epochs * len(scorer.held_out.labels)
    # A grace period of the whole trial leaves nothing to prune.
    if name == "none" or grace_epochs >= num_epochs:
        return _RayPruner(schedulers.FIFOScheduler(), base.epochs)
    if name == "median":
        return _RayPruner(
            schedulers.MedianStoppingRule(
                time_attr=_TIME,
                metric=_METRIC,
                mode=mode,
                grace_period=grace_epochs,
                # The median of fewer trials says little.
                min_samples_required=4,
            ),
            base.epochs,
        )
    return _RayPruner(
        schedulers.AsyncHyperBandScheduler(
            time_attr=_TIME,
            metric=_METRIC,
            mode=mode,
            max_t=num_epochs,
            grace_period=grace_epochs,
            reduction_factor=_REDUCTION_FACTOR,
        ),
        base.epochs,
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


class _Trial:
    """The part of a Ray Tune trial that schedulers read."""

    status = "RUNNING"

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class _NoController:
    """The part of Ray Tune's controller that schedulers read; no trial is waiting."""

    def get_live_trials(self) -> list[Any]:
        return []


class _RayPruner:
    """Asks a scheduler of Ray Tune, which sees the scores of the study."""

    fold_by_fold = False

    def __init__(self, scheduler: schedulers.TrialScheduler, epochs: int) -> None:
        self._scheduler, self._controller = scheduler, _NoController()
        self._epochs = epochs
        self._trials: dict[int, _Trial] = {}

    def judge(self, record: TrialRecord) -> Pruned | None:
        """See Pruner."""
        return self._take(record, len(record.history))

    def replay(self, record: TrialRecord) -> Pruned | None:
        """See Pruner. Ray Tune cannot save a scheduler's rungs, so each epoch is replayed."""
        pruned = None
        for count in range(1, len(record.history) + 1):
            pruned = self._take(record, count)
            if pruned:  # It expects no further results of this trial.
                break
        return pruned

    def _take(self, record: TrialRecord, count: int) -> Pruned | None:
        """Hands the scheduler the trial's epoch of this number, counted over all folds."""
        if record.number not in self._trials:
            self._trials[record.number] = _Trial(f"trial-{record.number}")
            self._scheduler.on_trial_add(self._controller, self._trials[record.number])
        result = {_TIME: count, _METRIC: record.history[count - 1]["metrics"]["score"]}
        trial = self._trials[record.number]
        decision = self._scheduler.on_trial_result(self._controller, trial, result)
        # A scheduler also stops a trial that is complete.
        if decision != schedulers.TrialScheduler.STOP or count == record.num_folds * self._epochs:
            return None
        return Pruned("its score is behind that of other trials")
