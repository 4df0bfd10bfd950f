"""When a study knows enough: what more trials are expected to gain, against the noise.

The best of n trials grows with the logarithm of n if the upper half of their scores falls off
exponentially, or slower if it falls off faster (the Gumbel domain of extreme value theory: Gumbel
1958). So the excess of the better trials over the median says what m more of the kind would add:
excess * ln((n + m) / n). Part of that excess is noise, which is taken out first.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from drone.search.scorer import Scorer
from drone.search.scoring import Objective, in_words
from drone.search.study import TrialRecord

_MIN_TRIALS = 10
"""Trials before anything is said: the sampler draws as many at random."""


@dataclass(frozen=True)
class Outlook:
    """What more trials would tell, in units of the objective."""

    num_trials: int
    """Trials so far."""

    num_more: int
    """Trials that may follow."""

    gain: float
    """Expected gain of the best trial by those."""

    noise: float
    """Standard error of a difference between two of the best trials over all their folds."""

    @property
    def is_sure(self) -> bool:
        """Whether more trials would be told apart by noise alone."""
        return self.gain < self.noise

    def sentence(self, objective: Objective) -> str:
        """Returns it in words."""
        gain = (
            f"{self.num_more} more are expected to gain {self.gain:.4f} in {in_words(objective)}"
            if self.gain > 0 or not self.num_more
            else f"their scores ({in_words(objective)}) differ by no more than the noise"
        )
        return (
            f"Enough after {self.num_trials} trials: {gain}, and a difference between two good "
            f"trials has a standard error of {self.noise:.4f}. --no-until-sure runs all "
            f"{self.num_trials + self.num_more}."
        )


def outlook(
    records: Sequence[TrialRecord], scorer: Scorer, num_more: int, num_folds: int
) -> Outlook | None:
    """Returns what more trials would tell; None if there are too few to say.

    Args:
        records: Trials of the study.
        scorer: Compares them.
        num_more: Number of trials that may follow.
        num_folds: Number of folds that the best trials will have been trained on in the end.
    """
    ended = [record for record in records if record.state not in ("running", "failed")]
    ordered = scorer.ordered(ended)
    if len(ended) < _MIN_TRIALS or not ordered:
        return None
    best, behind, errors = ordered[0], [0.0], []
    for record in ordered[1:]:
        difference = scorer.difference(best, record)
        if difference is None:  # Ended within its first fold: far behind, by how much is unknown.
            behind.append(math.inf)
        else:
            behind.append(difference.gain)
            errors.append(difference.standard_error)
    better = sorted(behind)[: max(2, (len(behind) + 1) // 2)]
    if not errors or math.isinf(better[-1]):
        return None
    # Of the trials that are close to the best: bad ones differ from it in more images.
    noise = statistics.median(errors[: max(1, len(errors) // 2)])
    excess = statistics.fmean(better[-1] - value for value in better)
    gain = _without_noise(excess, noise) * math.log1p(num_more / len(ended))
    # More folds will tell the best trials apart better than those of today do.
    share = scorer.num_complete_folds(best) / num_folds
    return Outlook(len(ended), num_more, gain, noise * math.sqrt(min(1.0, share)))


def _without_noise(excess: float, noise: float) -> float:
    """Returns the excess that is left when noise of this standard error is taken out."""
    # A difference has the noise of two trials, an excess that of one; of normal scores the better
    # half is ahead of the median by sqrt(2 / pi) of their standard deviation.
    return math.sqrt(max(0.0, excess**2 - 2 / math.pi * noise**2 / 2))
