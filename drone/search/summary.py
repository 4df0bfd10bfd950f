"""Summary of a study: the best trials, the most reliable configuration, the settings' effects."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from drone.search.domain import Choice, Domain, Range, Space
from drone.search.study import TrialRecord

_IDENTITY = ("model.unfreeze_depth", "model.head_width", "augment.strength")
"""Settings that make two configurations different; the others are rates."""

_MIN_TRIALS = 8
"""Minimum number of trials for a statement about a setting."""


def top_trials(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Returns the trials with the highest scores, first those that ran to the last epoch."""
    scored = [record for record in records if record.has_score]
    ranked = sorted(
        scored,
        key=lambda record: (record.state != "finished", -record.objective, record.number),
    )
    return ranked[:count]


def select_for_confirmation(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Returns the best trials that differ in more than rates, then the study's first one.

    Trials of the same depth, width and strength are near copies of each other: training them again
    would compare luck with luck, so they are only taken where the space has nothing else. The first
    trial is what one would use without a search.
    """
    ranked = top_trials(records, len(records))
    distinct: dict[tuple[Any, ...], TrialRecord] = {}
    for record in ranked:
        distinct.setdefault(tuple(record.params.get(name) for name in _IDENTITY), record)
    selected = list(distinct.values())[:count]
    copies = [record for record in ranked if record not in selected]
    selected += copies[: count - len(selected)]
    first = [record for record in ranked if record.number == 0]
    return selected + [record for record in first if record not in selected]


@dataclass(frozen=True)
class ConfirmedConfig:
    """A configuration that was trained again with other seeds and other validation images."""

    trial: TrialRecord
    scores: tuple[float, ...]
    """Validation macro F1 of each confirmation run that did not fail."""

    mean: float
    """Mean of the scores, corrected for runs that were easy or hard for all configurations; the
    trial's own score is left out, since it was chosen for being high."""

    lower: float
    """Lower end of the one-sided 95 % interval of the mean; of a single score, the score."""


def rank_confirmed(
    trials: Sequence[TrialRecord], runs: Mapping[int, Sequence[TrialRecord]]
) -> list[ConfirmedConfig]:
    """Ranks configurations by the lower bound of their mean score, best first.

    The scores of a configuration vary because some runs are easy or hard for all, which is removed
    (blocks: Fisher 1935), and by chance. That variance, known from two or three scores, is averaged
    with that of all configurations (moderated t: Smyth 2004), so that none wins by three scores
    that happen to lie close together. A run that diverged or collapsed counts with its score; a
    configuration that lacks a run comes after all that are complete.

    Args:
        trials: Trials that were confirmed.
        runs: Confirmation runs by the trial's number; at each position all trials have the same
            images and seed.
    """
    scores = {
        trial.number: [run.objective if _counts(run) else None for run in runs[trial.number]]
        for trial in trials
    }
    ease = _ease(list(scores.values()))
    corrected = {number: _corrected(row, ease) for number, row in scores.items()}
    variances = [statistics.variance(row) for row in corrected.values() if len(row) > 1]
    common_variance = statistics.fmean(variances) if variances else 0.0
    confirmed = []
    for trial in trials:
        row = tuple(score for score in scores[trial.number] if score is not None)
        if row:
            mean = statistics.fmean(corrected[trial.number])
            lower = _lower_bound(mean, corrected[trial.number], common_variance)
            confirmed.append(ConfirmedConfig(trial, row, mean, lower))
    return sorted(
        confirmed, key=lambda config: (None in scores[config.trial.number], -config.lower)
    )


def _counts(run: TrialRecord) -> bool:
    """Whether the score of a run says something about its configuration."""
    ended = run.state in ("finished", "stopped")
    return ended and bool(run.history) and math.isfinite(run.objective)


def _ease(rows: Sequence[Sequence[float | None]]) -> list[float]:
    """Returns each position's mean minus the overall mean, if two or more rows are complete."""
    # An incomplete row would shift the averages by what the configuration itself is worth.
    complete = [[score for score in row if score is not None] for row in rows if None not in row]
    if len(complete) < 2:
        return []
    means = [statistics.fmean(column) for column in zip(*complete, strict=True)]
    return [mean - statistics.fmean(means) for mean in means]


def _corrected(row: Sequence[float | None], ease: Sequence[float]) -> list[float]:
    return [
        score - (ease[position] if ease else 0.0)
        for position, score in enumerate(row)
        if score is not None
    ]


def _lower_bound(mean: float, scores: Sequence[float], common_variance: float) -> float:
    count = len(scores)
    if count < 2:
        return mean
    # Each counts half, so there are twice the degrees of freedom.
    variance = (statistics.variance(scores) + common_variance) / 2
    return mean - float(stats.t.ppf(0.95, 2 * (count - 1))) * math.sqrt(variance / count)


def table(records: Sequence[TrialRecord], names: Mapping[int, str]) -> pd.DataFrame:
    """Returns a row per trial: number, name, state, score, epochs, seconds, settings."""
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
    """Returns a sentence on each setting, by name, the most important first.

    Trials that were pruned or stopped count with the score that they had.

    Args:
        records: Trials of the study.
        space: Space that was searched.
        importances: Shares of 1 by setting; may be empty.
    """
    scored = [record for record in records if record.has_score]
    names = sorted(space, key=lambda name: -importances.get(name, 0.0))
    return {name: _sentence(name, scored, space[name], importances.get(name)) for name in names}


def _sentence(
    name: str, records: Sequence[TrialRecord], domain: Domain, importance: float | None
) -> str:
    points = [
        (record.params[name], record.objective) for record in records if name in record.params
    ]
    if len(points) < _MIN_TRIALS:
        return f"Only {len(points)} trials used it: too few to say anything."
    groups = _groups(points, domain)
    means = {label: statistics.fmean(scores) for label, scores in groups.items()}
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    prefix = f"Importance {importance:.0%}. " if importance is not None else ""
    if best == worst:
        return f"{prefix}Only {best} was tried often enough to compare."
    error = math.sqrt(sum(_variance(groups[label]) / len(groups[label]) for label in (best, worst)))
    # Twice the standard error: about 95 %.
    noise = means[best] - means[worst] < 2 * error
    verdict = " The difference is within the noise." if noise else ""
    return (
        f"{prefix}Best at {best}, mean {means[best]:.3f} over {len(groups[best])} trials; weakest "
        f"at {worst}, {means[worst]:.3f} over {len(groups[worst])}.{verdict}"
    )


def _variance(scores: Sequence[float]) -> float:
    # A single score has no spread, so no difference to it counts.
    return statistics.variance(scores) if len(scores) > 1 else math.inf


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
