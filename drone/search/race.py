"""The race: ends trials that are significantly worse than the best one, on the same images.

A trial starts with one fold, and gets the next as long as it may be the best (F-Race: Birattari et
al. 2002). Whether it may is a paired test over the images that it and the best trial so far have
predicted, so a trial is never ended by the luck of a few images.
"""

from dataclasses import dataclass

from scipy import stats

from drone.search.scorer import Scorer
from drone.search.scoring import Difference, in_words
from drone.search.study import TrialRecord

_MAX_CHANCE = 0.2
"""A trial ends when its chance of being better than the best one is below this."""

_MAX_CHANCE_EARLY = 0.02
"""Within the first fold, where its remaining epochs may change the order."""

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
        entry = record.history[-1]
        fold, epoch = entry["fold"], entry["epoch"]
        if epoch == self._scorer.epochs and fold + 1 < record.num_folds:
            leader = self._leader(record, fold + 1)
            difference = self._scorer.difference(record, leader) if leader else None
            when = f"{fold + 1} {'fold' if fold == 0 else 'folds'}"
            return self._verdict(difference, leader, _MAX_CHANCE, when)
        if fold == 0 and epoch in self._rungs:
            leader = self._leader(record, 1)
            difference = self._scorer.difference_at(record, leader, epoch) if leader else None
            return self._verdict(difference, leader, _MAX_CHANCE_EARLY, f"{epoch} epochs")
        return None

    def replay(self, record: TrialRecord) -> Pruned | None:
        """Takes a trial of an earlier attempt, and judges it where it stands."""
        return self.judge(record)

    def _leader(self, record: TrialRecord, num_folds: int) -> TrialRecord | None:
        """Returns the best other trial that has completed so many folds."""
        scorer = self._scorer
        others = [
            other
            for other in self._records.values()
            if other.number != record.number and scorer.num_complete_folds(other) >= num_folds
        ]
        return next(iter(scorer.ordered(others)), None)

    def _verdict(
        self, difference: Difference | None, leader: TrialRecord | None, limit: float, when: str
    ) -> Pruned | None:
        if difference is None or leader is None:
            return None
        # A standard error of 0: both predict the same.
        chance = float(stats.norm.cdf(difference.gain / max(difference.standard_error, 1e-12)))
        if chance >= limit:
            return None
        name = in_words(self._scorer.objective)
        return Pruned(
            f"worse than trial {leader.number} after {when}: {name} by {-difference.gain:.3f} "
            f"({-difference.high:.3f} to {-difference.low:.3f})",
            leader.number,
        )
