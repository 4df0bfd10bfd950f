"""Summary of a study: the ranking of its trials with ties, and the effects of its settings."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.search.domain import Choice, Domain, Range, Space
from drone.search.sampler import Importance
from drone.search.scorer import Scorer
from drone.search.scoring import Difference, Objective, sign
from drone.search.study import TrialRecord

_IDENTITY = ("model.unfreeze_depth", "model.head_width", "augment.strength")
"""Settings that make two configurations different; the others are rates."""

_MIN_TRIALS = 8
"""Minimum number of trials for a statement about a setting."""

_SIGNIFICANCE, _NUM_PERMUTATIONS = 0.05, 1000


@dataclass(frozen=True)
class RankedTrial:
    """A trial, and how it compares with the best one on the images that both have predicted."""

    record: TrialRecord
    num_folds: int
    """Number of folds that it has completed."""

    difference: Difference | None
    """By how much the best trial is better, in units of the objective, on the folds that both have;
    None for the best trial, and for one without a complete fold. The interval allows for the best
    of many trials having had luck."""

    accuracy: Difference | None
    """Likewise in accuracy."""

    is_tie: bool
    """Whether it was trained on as many folds as the best, and may be as good."""

    @property
    def may_be_best(self) -> bool:
        """Whether the best trial is not surely better."""
        return self.difference is not None and self.difference.low <= 0

    @property
    def is_ahead(self) -> bool:
        """Whether it is surely better than the best on the folds that both have."""
        return self.difference is not None and self.difference.high < 0


def rank(records: Sequence[TrialRecord], scorer: Scorer) -> list[RankedTrial]:
    """Returns the trials that have a score, best first, each compared with the best."""
    ordered = scorer.ordered(records)
    num_compared = scorer.num_candidates(ordered) if ordered else 1
    return [_ranked(record, ordered[0], scorer, num_compared) for record in ordered]


def _ranked(
    record: TrialRecord, best: TrialRecord, scorer: Scorer, num_compared: int
) -> RankedTrial:
    num_folds = scorer.num_complete_folds(record)
    if record is best:
        return RankedTrial(record, num_folds, None, None, is_tie=False)
    difference, accuracy = (
        scorer.difference(best, record, metric, num_compared=num_compared)
        for metric in (None, "accuracy")
    )
    has_all_folds = num_folds == scorer.num_complete_folds(best)
    is_tie = difference is not None and difference.is_tie and has_all_folds
    return RankedTrial(record, num_folds, difference, accuracy, is_tie)


def select_for_confirmation(
    records: Sequence[TrialRecord], count: int, scorer: Scorer
) -> list[TrialRecord]:
    """Returns the best trials that differ in more than rates, then the study's first one.

    Trials of the same depth, width and strength are near copies of each other: training them again
    would compare luck with luck, so they are only taken where the space has nothing else. The first
    trial is what one would use without a search.
    """
    ranked = scorer.ordered(records)
    distinct: dict[tuple[Any, ...], TrialRecord] = {}
    for record in ranked:
        distinct.setdefault(tuple(record.params.get(name) for name in _IDENTITY), record)
    selected = list(distinct.values())[:count]
    copies = [record for record in ranked if record not in selected]
    selected += copies[: count - len(selected)]
    first = [record for record in ranked if record.number == 0]
    return selected + [record for record in first if record not in selected]


def table(records: Sequence[TrialRecord], names: Mapping[int, str], scorer: Scorer) -> pd.DataFrame:
    """Returns a row per trial, best first: what it is, its score, and how it compares.

    "behind" is by how much the best trial is better on the folds that both have, from "low" to
    "high" (95 %, allowing for the choice among many); "tie" says whether that interval holds 0 for
    a trial of as many folds.
    """
    ranked = {trial.record.number: trial for trial in rank(records, scorer)}
    last = [record for record in records if record.number not in ranked]
    rows = []
    for record in [*(trial.record for trial in ranked.values()), *last]:
        trial = ranked.get(record.number)
        difference = trial.difference if trial else None
        rows.append(
            {
                "trial": record.number,
                "name": names[record.number],
                "state": record.state,
                "folds": scorer.num_complete_folds(record),
                "score": record.score,
                "score_se": record.score_se,
                "behind": difference.gain if difference else None,
                "low": difference.low if difference else None,
                "high": difference.high if difference else None,
                "tie": "tie" if trial and trial.is_tie else "",
                "epochs": len(record.history),
                "seconds": record.usage.get("resource/wall_s"),
                **record.params,
                "reason": record.reason,
            }
        )
    return pd.DataFrame(rows)


def sentences(
    records: Sequence[TrialRecord],
    space: Space,
    importances: Mapping[str, Importance],
    objective: Objective,
) -> dict[str, str]:
    """Returns a sentence on each setting, by name, the most important first.

    Trials that were pruned or stopped count with the score that they had.

    Args:
        records: Trials of the study.
        space: Space that was searched.
        importances: By setting; may be empty.
        objective: What the scores are.
    """
    scored = [record for record in records if record.has_score]
    shares = {name: importance.share for name, importance in importances.items()}
    names = sorted(space, key=lambda name: -shares.get(name, 0.0))
    return {
        name: _sentence(name, scored, space[name], importances.get(name), sign(objective))
        for name in names
    }


def _sentence(
    name: str,
    records: Sequence[TrialRecord],
    domain: Domain,
    importance: Importance | None,
    better: int,
) -> str:
    points = [
        (record.params[name], record.score)
        for record in records
        if name in record.params and record.score is not None
    ]
    if len(points) < _MIN_TRIALS:
        return f"Only {len(points)} trials used it: too few to say anything."
    groups = _groups(points, domain)
    means = {label: statistics.fmean(scores) for label, scores in groups.items()}
    ordered = sorted(means, key=lambda label: better * means[label])
    worst, best = ordered[0], ordered[-1]
    prefix = ""
    if importance is not None:
        interval = f"{importance.low:.0%} to {importance.high:.0%}"
        prefix = f"Importance {importance.share:.0%} ({interval}). "
    if best == worst:
        return f"{prefix}Only {best} was tried often enough to compare."
    noise = _chance_of_range(list(groups.values())) > _SIGNIFICANCE
    verdict = " The difference is within the noise." if noise else ""
    return (
        f"{prefix}Best at {best}, mean {means[best]:.3f} over {len(groups[best])} trials; weakest "
        f"at {worst}, {means[worst]:.3f} over {len(groups[worst])}.{verdict}"
    )


def _chance_of_range(groups: Sequence[Sequence[float]]) -> float:
    """Returns how often scores that have nothing to do with their groups would differ as much.

    A permutation test of the difference between the best and the weakest group's mean: with several
    groups, two of them are far apart by chance.
    """
    ends = np.cumsum([len(scores) for scores in groups])[:-1]

    def span(scores: NDArray[np.float64]) -> float:
        return float(np.ptp([part.mean() for part in np.split(scores, ends)]))

    scores = np.concatenate(groups)
    generator, observed = np.random.default_rng(0), span(scores)
    spans = [span(generator.permutation(scores)) for _ in range(_NUM_PERMUTATIONS)]
    return float(np.mean([drawn >= observed for drawn in spans]))


def _groups(points: Sequence[tuple[Any, float]], domain: Domain) -> dict[str, list[float]]:
    """Groups scores by value, or by third of a range; values tried once are left out."""
    groups: dict[str, list[float]] = {}
    # Choices may mix types, which cannot be compared.
    for value, score in sorted(points, key=lambda pair: (str(type(pair[0])), pair[0])):
        groups.setdefault(_label(value, domain), []).append(score)
    repeated = {label: scores for label, scores in groups.items() if len(scores) > 1}
    return repeated or groups


def _label(value: Any, domain: Domain) -> str:
    if isinstance(domain, Choice):
        return str(value)
    edges = _thirds(domain)
    # The upper end belongs to the last third.
    third = min(2, sum(value >= edge for edge in edges[1:3]))
    return f"{edges[third]:.2g} to {edges[third + 1]:.2g}"


def _thirds(domain: Range) -> list[float]:
    if domain.log:
        low, high = math.log(domain.low), math.log(domain.high)
        return [math.exp(low + (high - low) * part / 3) for part in range(4)]
    return [domain.low + (domain.high - domain.low) * part / 3 for part in range(4)]
