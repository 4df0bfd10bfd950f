"""Scores and compares the trials of a study."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from drone.search import scoring
from drone.search.scoring import Difference, HeldOut, Objective, Score
from drone.search.study import TrialRecord


@dataclass(frozen=True)
class Scorer:
    """Scores the trials of one part of a study, on the images that they have predicted."""

    held_out: HeldOut
    objective: Objective
    epochs: int
    """Epochs of a complete fold."""

    first_fold_selects: bool = False
    """Whether the first fold has selected the trials that got the others, as in a race."""

    _newest: dict[int, tuple[int, Score | None]] = field(default_factory=dict, repr=False)
    """Number of epochs and score of each trial, by its number; older scores would fill memory."""

    def update(self, record: TrialRecord) -> None:
        """Puts the score of a trial into it and its newest epoch."""
        score = self.score(record)
        assert score is not None
        record.score = score.value(self.objective)
        record.score_se = score.standard_error(self.objective)
        record.history[-1]["metrics"]["score"] = record.score

    def finish(self, record: TrialRecord) -> None:
        """Puts all metrics of a trial that has ended into it."""
        score = self.score(record)
        if score is not None:
            record.metrics = {
                "folds": self.num_complete_folds(record),
                "best_epoch": score.epoch,
                "temperature": score.temperature,
                **score.metrics(self.held_out.classes),
            }
            if record.num_folds > 1 and len(record.history) >= self.epochs:
                # All trials have this fold, so these can be compared at a glance.
                first = record.after(self.epochs).score
                assert first is not None
                record.metrics["score_first_fold"] = first

    def score(self, record: TrialRecord) -> Score | None:
        """Returns the score of a trial at its best epoch; None before its first epoch."""
        count, score = self._newest.get(record.number, (-1, None))
        if count != len(record.history):
            score = scoring.best_score(record.history, self.held_out, self.objective, self.epochs)
            self._newest[record.number] = len(record.history), score
        return score

    def ordered(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Returns the trials that have a score, best first: by complete folds, then by score."""

        def key(record: TrialRecord) -> tuple[int, float, int]:
            assert record.score is not None
            better = scoring.sign(self.objective) * record.score
            return -self.num_complete_folds(record), -better, record.number

        return sorted((record for record in records if record.has_score), key=key)

    def num_complete_folds(self, record: TrialRecord) -> int:
        """Returns in how many folds a trial has been trained to the last epoch."""
        return scoring.complete_folds(record.history, self.epochs)

    def difference(
        self,
        record: TrialRecord,
        other: TrialRecord,
        metric: str | None = None,
        num_folds: int | None = None,
        num_compared: int = 1,
    ) -> Difference | None:
        """Compares two trials on the folds that both have completed.

        A first fold that has selected the trials is left out where there are more: the best of many
        had luck on it.

        Args:
            record: A trial.
            other: The trial that it is compared with.
            metric: What is compared; None is the study's objective.
            num_folds: Number of first folds to compare on; None for all.
            num_compared: Number of trials of which the first is the best; see
                `scoring.difference`.

        Returns:
            By how much the first is better; None if they have no complete fold in common.
        """
        common = min(self.num_complete_folds(record), self.num_complete_folds(other))
        num_folds = common if num_folds is None else num_folds
        if not num_folds:
            return None
        folds = range(self._num_selecting(num_folds), num_folds)
        score, base = (self._score_on(trial, folds) for trial in (record, other))
        return scoring.difference(score, base, metric or self.objective, num_compared)

    def _num_selecting(self, num_folds: int) -> int:
        """Returns how many first folds have only selected trials, and compare none."""
        return 1 if self.first_fold_selects and num_folds > 1 else 0

    def num_candidates(self, ordered: Sequence[TrialRecord]) -> int:
        """Returns how many trials the best one is the best of, on the folds that compare it.

        Args:
            ordered: Trials that have a score, best first.
        """
        min_folds = 1 + self._num_selecting(self.num_complete_folds(ordered[0]))
        count = sum(self.num_complete_folds(record) >= min_folds for record in ordered)
        return max(1, count - 1)  # Less the one that it is compared with.

    def gain_on(self, record: TrialRecord, num_folds: int) -> float:
        """Returns a trial's objective over its first folds, negative if less is better."""
        score = self._score_on(record, range(num_folds))
        return scoring.sign(self.objective) * score.value(self.objective)

    def difference_at(self, record: TrialRecord, other: TrialRecord, epoch: int) -> Difference:
        """Compares two trials after the same epoch of the first fold, which both have reached."""
        scores = [
            scoring.score_at(trial.history, self.held_out, epoch, range(1))
            for trial in (record, other)
        ]
        return scoring.difference(scores[0], scores[1], self.objective)

    def _score_on(self, record: TrialRecord, folds: range) -> Score:
        """Returns the score at the best epoch of all folds, over some of them."""
        score = self.score(record)
        assert score is not None
        if folds == range(score.num_folds):
            return score
        return scoring.score_at(record.history, self.held_out, score.epoch, folds)
