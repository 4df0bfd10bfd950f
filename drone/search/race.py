"""The race: folds go to the trials that may be the best, chosen among all on the same images.

Every trial is trained on one fold, the better third of them on a second one, and so on: successive
halving (Jamieson and Talwalkar 2016) over folds instead of epochs. A trial also ends when a paired
test over the images says that it is surely worse than the best one (F-Race: Birattari et al. 2002).
The first trial, with which the others are compared in the end, gets all folds.
"""

import math
from dataclasses import dataclass

from drone.search.scorer import Scorer
from drone.search.scoring import Difference, in_words
from drone.search.study import TrialRecord

_SHARE = 1 / 3
"""Share of the trials of a fold that get the next one."""

_MIN_SURVIVORS = 3
"""But no fewer trials than these."""

_MIN_CHANCE = 0.02
"""A trial ends when its chance of being better than the best one is below this."""

_RUNGS = (0.25, 0.5)
"""Shares of the epochs of the first fold after which a trial is judged too."""


@dataclass(frozen=True)
class Pruned:
    """Why a trial was ended early."""

    reason: str
    by: int | None = None
    """Number of the trial that it was worse than."""


class Race:
    """Judges trials by those that have come further."""

    fold_by_fold = True

    def __init__(self, scorer: Scorer, grace_epochs: int) -> None:
        """Starts without trials.

        Args:
            scorer: Compares trials.
            grace_epochs: Epochs before which no trial is ended.
        """
        self._scorer = scorer
        self._records: dict[int, TrialRecord] = {}
        rungs = {round(share * scorer.epochs) for share in _RUNGS}
        self._rungs = {rung for rung in rungs if grace_epochs <= rung < scorer.epochs}

    def judge(self, record: TrialRecord) -> Pruned | None:
        """Returns why a trial ends after its newest epoch; None if it continues."""
        self._records[record.number] = record
        if record.number == 0:
            return None
        entry = record.history[-1]
        fold, epoch = entry["fold"], entry["epoch"]
        if epoch == self._scorer.epochs and fold + 1 < record.num_folds:
            return self._judge_folds(record, fold + 1)
        if fold == 0 and epoch in self._rungs:
            return self._judge_epochs(record, epoch)
        return None

    def replay(self, record: TrialRecord) -> Pruned | None:
        """Takes a trial of an earlier attempt, and judges it where it stands."""
        return self.judge(record)

    def _judge_folds(self, record: TrialRecord, num_folds: int) -> Pruned | None:
        """Judges a trial by all that have completed as many folds."""
        gains = self._gains_of_others(record, num_folds)
        if not gains:
            return None
        leader = self._records[max(gains, key=gains.__getitem__)]
        when = f"{num_folds} {'fold' if num_folds == 1 else 'folds'}"
        difference = self._scorer.difference(record, leader, num_folds=num_folds)
        assert difference is not None
        if difference.chance < _MIN_CHANCE:
            return self._worse(difference, leader, when)
        own = self._scorer.gain_on(record, num_folds)
        num_better = sum(gain > own for gain in gains.values())
        limit = max(_MIN_SURVIVORS, math.ceil(len(self._records) * _SHARE**num_folds))
        if num_better < limit:
            return None
        return Pruned(f"{num_better} trials were better after {when}", leader.number)

    def _judge_epochs(self, record: TrialRecord, epoch: int) -> Pruned | None:
        gains = self._gains_of_others(record, 1)
        if not gains:
            return None
        leader = self._records[max(gains, key=gains.__getitem__)]
        difference = self._scorer.difference_at(record, leader, epoch)
        if difference.chance >= _MIN_CHANCE:
            return None
        return self._worse(difference, leader, f"{epoch} epochs")

    def _gains_of_others(self, record: TrialRecord, num_folds: int) -> dict[int, float]:
        """Returns the objective of the other trials that have completed so many folds, on those."""
        scorer = self._scorer
        return {
            number: scorer.gain_on(other, num_folds)
            for number, other in self._records.items()
            if other is not record
            and other.has_score
            and scorer.num_complete_folds(other) >= num_folds
        }

    def _worse(self, difference: Difference, leader: TrialRecord, when: str) -> Pruned:
        name = in_words(self._scorer.objective)
        return Pruned(
            f"worse than trial {leader.number} after {when}: {name} by {-difference.gain:.3f} "
            f"({-difference.high:.3f} to {-difference.low:.3f})",
            leader.number,
        )
