"""What a study says: its best trials, and what each setting did."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from drone.search.space import Choice, Domain, Range, Space
from drone.search.study import TrialRecord

_SHAPE = ("model.unfreeze_depth", "model.head_width", "augment.strength")
"""Settings that make one configuration another."""

_FEWEST = 8
"""Trials below which a study says nothing of a setting."""


def best_of(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """The trials of the highest scores; those that ran to their end come first."""
    usable = [record for record in records if record.history and record.state != "failed"]
    order = sorted(
        usable,
        key=lambda record: (record.state != "finished", -record.objective, record.number),
    )
    return order[:count]


def worth_repeating(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """The best trials that differ in more than rates, then the study's first one.

    Trials of the same depth, width and strength are near copies of each other: repeating them would
    tell luck from luck, so they come only where the space has nothing else. The first trial is what
    one would use without a search.
    """
    found: dict[tuple[Any, ...], TrialRecord] = {}
    usable = best_of(records, len(records))
    for record in usable:
        found.setdefault(tuple(record.params.get(name) for name in _SHAPE), record)
    best = list(found.values())[:count]
    copies = [record for record in usable if record not in best]
    best += copies[: count - len(best)]
    first = [record for record in usable if record.number == 0]
    return best + [record for record in first if record not in best]


@dataclass(frozen=True)
class Repeated:
    """A configuration that was trained anew, each time on other pictures with another seed."""

    trial: TrialRecord
    scores: tuple[float, ...]
    """Validation macro F1 of each repetition that did not fail."""

    mean: float
    """Of the scores, less what those that are missing would have made easier or harder; the trial's
    own is left out, since it was chosen for being high."""

    lower: float
    """Lower end of the one-sided 95 % interval of the mean; of a single score, the score."""


def rank_repeated(
    trials: Sequence[TrialRecord], repetitions: Mapping[int, Sequence[TrialRecord]]
) -> list[Repeated]:
    """The configurations by the lower bound of their mean, the surest first.

    The scores of a configuration vary because some repetitions are easy or hard for all, which is
    taken out (blocks: Fisher 1935), and by chance. That variance, known from two or three scores,
    is averaged with that of all configurations (moderated t: Smyth 2004), so that none wins by
    three scores that happen to lie close together. A repetition that diverged or collapsed counts
    with the score that it had; a configuration that lacks one comes after all that are whole.

    Args:
        trials: that were repeated.
        repetitions: by the trial's number; at each position the same pictures and seed.
    """
    scores = {
        trial.number: [one.objective if _counts(one) else None for one in repetitions[trial.number]]
        for trial in trials
    }
    ease = _ease(list(scores.values()))
    left = {
        number: [
            score - (ease[position] if ease else 0.0)
            for position, score in enumerate(row)
            if score is not None
        ]
        for number, row in scores.items()
    }
    variances = [statistics.variance(row) for row in left.values() if len(row) > 1]
    usual = statistics.fmean(variances) if variances else 0.0
    found = []
    for trial in trials:
        known = tuple(score for score in scores[trial.number] if score is not None)
        if known:
            mean = statistics.fmean(left[trial.number])
            found.append(Repeated(trial, known, mean, _lower(mean, left[trial.number], usual)))
    return sorted(found, key=lambda one: (None in scores[one.trial.number], -one.lower))


def _counts(repetition: TrialRecord) -> bool:
    """Whether its score says something of its configuration."""
    over = repetition.state in ("finished", "ended")
    return over and bool(repetition.history) and math.isfinite(repetition.objective)


def _ease(rows: Sequence[Sequence[float | None]]) -> list[float]:
    """How far each position lies above the average, if two or more rows are whole."""
    whole = [[one for one in row if one is not None] for row in rows if None not in row]
    if len(whole) < 2:
        return []
    means = [statistics.fmean(column) for column in zip(*whole, strict=True)]
    return [mean - statistics.fmean(means) for mean in means]


def _lower(mean: float, left: Sequence[float], usual_variance: float) -> float:
    count = len(left)
    if count < 2:
        return mean
    variance = (statistics.variance(left) + usual_variance) / 2
    return mean - float(stats.t.ppf(0.95, 2 * (count - 1))) * math.sqrt(variance / count)


def table(records: Sequence[TrialRecord], names: Mapping[int, str]) -> pd.DataFrame:
    """A row for each trial: number, name, state, score, epochs, seconds, settings."""
    rows = [
        {
            "trial": record.number,
            "name": names[record.number],
            "state": record.state,
            "objective": record.objective,
            "epochs": len(record.history),
            "seconds": record.usage.get("resource/wall_s", float("nan")),
            **record.params,
            "reason": record.reason,
        }
        for record in records
    ]
    return pd.DataFrame(rows)


def sentences(
    records: Sequence[TrialRecord], space: Space, importances: Mapping[str, float]
) -> dict[str, str]:
    """A sentence on each setting, by name, the most important first.

    Trials that were stopped early count with the score that they had.

    Args:
        records: of the study.
        space: that was searched.
        importances: shares of 1 by setting; may be empty.
    """
    usable = [record for record in records if record.history and record.state != "failed"]
    order = sorted(space, key=lambda name: -importances.get(name, 0.0))
    return {name: _sentence(name, usable, space[name], importances) for name in order}


def _sentence(
    name: str, records: Sequence[TrialRecord], domain: Domain, importances: Mapping[str, float]
) -> str:
    seen = [(record.params[name], record.objective) for record in records if name in record.params]
    if len(seen) < _FEWEST:
        return f"Only {len(seen)} trials used it: too few to say anything."
    groups = _groups(seen, domain)
    means = {label: statistics.fmean(scores) for label, scores in groups.items()}
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    share = importances.get(name)
    begin = f"Importance {share:.0%}. " if share is not None else ""
    if best == worst:
        return f"{begin}Only {best} was tried often enough to compare."
    error = math.sqrt(sum(_variance(groups[label]) / len(groups[label]) for label in (best, worst)))
    weak = means[best] - means[worst] < 2 * error
    verdict = " The difference is within the noise." if weak else ""
    return (
        f"{begin}Best at {best}, mean {means[best]:.3f} over {len(groups[best])} trials; weakest "
        f"at {worst}, {means[worst]:.3f} over {len(groups[worst])}.{verdict}"
    )


def _variance(scores: Sequence[float]) -> float:
    return statistics.variance(scores) if len(scores) > 1 else math.inf


def _groups(seen: Sequence[tuple[Any, float]], domain: Domain) -> dict[str, list[float]]:
    """Scores by value, or by third of a range; values tried once are left out."""
    groups: dict[str, list[float]] = {}
    for value, score in sorted(seen, key=lambda pair: (str(type(pair[0])), pair[0])):
        groups.setdefault(_label(value, domain), []).append(score)
    often = {label: scores for label, scores in groups.items() if len(scores) > 1}
    return often or groups


def _label(value: Any, domain: Domain) -> str:
    if isinstance(domain, Choice):
        return str(value)
    edges = _thirds(domain)
    third = min(2, sum(value >= edge for edge in edges[1:3]))
    return f"{edges[third]:.2g} to {edges[third + 1]:.2g}"


def _thirds(domain: Range) -> list[float]:
    if domain.log:
        low, high = math.log(domain.low), math.log(domain.high)
        return [math.exp(low + (high - low) * part / 3) for part in range(4)]
    return [domain.low + (domain.high - domain.low) * part / 3 for part in range(4)]
