"""What a study says in the end: which configuration to use, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drone.search.scorer import Scorer
from drone.search.scoring import Difference, in_words
from drone.search.study import TrialRecord
from drone.search.summary import RankedTrial, rank


@dataclass(frozen=True)
class Verdict:
    """The configuration that a study recommends."""

    winner: TrialRecord
    sentence: str


def decide(
    records: Sequence[TrialRecord],
    scorer: Scorer,
    names: Mapping[int, str],
    first_is_preset: bool,
) -> Verdict | None:
    """Selects a trial, and says what is known of it; None if no trial has a score.

    That is the best one, but the preset where none is surely better: the best of many trials owes
    part of its score to luck (docs/log.md).

    Args:
        records: Trials of the study, or of its confirmation.
        scorer: Compares them.
        names: Names of the configurations by trial.
        first_is_preset: Whether trial 0 is the preset as it is.
    """
    ranked = rank(records, scorer)
    if not ranked:
        return None
    best = ranked[0].record
    first = next((trial for trial in ranked if trial.record.number == 0), None)
    reference = "the preset" if first_is_preset else f"the first trial ({names.get(0)})"
    sentence = _sentence(best, first, names[best.number], reference, scorer)
    winner = best
    if first is not None and first_is_preset and first.may_be_best:
        winner = first.record
        sentence += f" The preset is kept: {_value(winner, scorer)}."
    return Verdict(winner, f"{sentence} {_ties(ranked)}".strip())


def _sentence(
    winner: TrialRecord, first: RankedTrial | None, name: str, reference: str, scorer: Scorer
) -> str:
    value, subject = _value(winner, scorer), f"{name} (trial {winner.number})"
    if first is not None and first.record is winner:
        return f"Nothing found is better than {reference}: {value}."
    if first is None or first.difference is None:
        return f"{subject} is the best found: {value}."
    gain = _gain(first, scorer)
    if first.may_be_best:
        ahead = f"is ahead by {gain}"
        if first.difference.gain <= 0:
            ahead = "has the best score, but not on the folds after the first, which selected it"
        return f"Nothing found is surely better than {reference}. {subject} {ahead}: {value}."
    return f"{subject} is better than {reference} by {gain}: {value}."


def _value(record: TrialRecord, scorer: Scorer) -> str:
    folds = scorer.num_complete_folds(record)
    where = "on validation" if len(scorer.held_out.labels) == 1 else f"over {folds} folds"
    error = f" (standard error {record.score_se:.3f})" if record.score_se is not None else ""
    return f"{in_words(scorer.objective)} {record.score:.3f} {where}{error}"


def _gain(trial: RankedTrial, scorer: Scorer) -> str:
    """Returns by how much the best trial is better than this one, in words."""
    difference, accuracy = trial.difference, trial.accuracy
    assert difference is not None
    if scorer.objective == "macro_f1":
        return _points(difference)
    text = f"{difference.gain:.3f} in log-loss ({difference.low:.3f} to {difference.high:.3f})"
    return f"{text} and {_points(accuracy)} of accuracy" if accuracy else text


def _points(difference: Difference) -> str:
    values = [100 * value for value in (difference.gain, difference.low, difference.high)]
    return f"{values[0]:.1f} points ({values[1]:.1f} to {values[2]:.1f})"


def _ties(ranked: Sequence[RankedTrial]) -> str:
    count = sum(trial.is_tie and trial.num_folds == ranked[0].num_folds for trial in ranked)
    if count == 0:
        return "No other trial is a tie." if len(ranked) > 1 else ""
    return f"{count} other {'trial is a tie' if count == 1 else 'trials are ties'}."
