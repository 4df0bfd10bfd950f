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
    baseline: str | None,
) -> Verdict | None:
    """Selects a trial, and says what is known of it; None if no trial has a score.

    That is the best one, but the baseline where none is surely better: the best of many trials owes
    part of its score to luck (docs/log.md).

    Args:
        records: Trials of the study, or of its confirmation.
        scorer: Compares them.
        names: Names of the configurations by trial.
        baseline: What trial 0 is in words ("the preset"), if one would use it without a search;
            None if it is just the first one that was tried.
    """
    ranked = rank(records, scorer)
    if not ranked:
        return None
    best = ranked[0].record
    first = next((trial for trial in ranked if trial.record.number == 0), None)
    sentence = _sentence(
        ranked, first, names, baseline or f"the first trial ({names.get(0)})", scorer
    )
    sentence = f"{sentence}: {_value(best, scorer)}."
    winner = best
    if first is None and baseline is not None:
        sentence += f" Its comparison with {baseline} is missing: that trial has no score."
    elif first is not None and baseline is not None and first.may_be_best:
        winner = first.record
        sentence += f" {baseline[0].upper()}{baseline[1:]} is kept: {_value(winner, scorer)}."
    return Verdict(winner, f"{sentence} {_ties(ranked, winner)}".strip())


def _sentence(
    ranked: Sequence[RankedTrial],
    first: RankedTrial | None,
    names: Mapping[int, str],
    reference: str,
    scorer: Scorer,
) -> str:
    """Returns what is known of the best trial, without its score."""
    best = ranked[0].record
    subject = _subject(best, names)
    if first is not None and first.record is best:
        ahead = [trial for trial in ranked if trial.is_ahead]
        if not ahead:
            return f"Nothing found is better than {reference}"
        others = ", ".join(_subject(trial.record, names) for trial in ahead)
        return (
            f"{others} {'was' if len(ahead) == 1 else 'were'} better than {reference} on the folds "
            f"that both have, but ended before the others; {reference} is kept"
        )
    if first is None or first.difference is None:
        return f"{subject} is the best found"
    gain = _gain(first, scorer)
    if not first.may_be_best:
        return f"{subject} is better than {reference} by {gain}"
    ahead_by = f"is ahead by {gain}"
    if first.difference.gain <= 0:
        ahead_by = "has the best score, but not on the folds that compare the two"
    return f"Nothing found is surely better than {reference}. {subject} {ahead_by}"


def _subject(record: TrialRecord, names: Mapping[int, str]) -> str:
    return f"{names[record.number]} (trial {record.number})"


def _value(record: TrialRecord, scorer: Scorer) -> str:
    folds = scorer.num_complete_folds(record)
    where = f"over {folds} fold{'' if folds == 1 else 's'}"
    if len(scorer.held_out.labels) == 1:
        where = "on validation"
    elif not folds:
        where = "over a part of the first fold"
    error = f" (standard error {record.score_se:.3f})" if record.score_se is not None else ""
    return f"{in_words(scorer.objective)} {record.score:.3f} {where}{error}"


def _gain(trial: RankedTrial, scorer: Scorer) -> str:
    """Returns by how much the best trial is better than this one, in words."""
    difference, accuracy = trial.difference, trial.accuracy
    assert difference is not None
    if scorer.objective == "macro_f1":
        return _points(difference)
    text = f"{difference.gain:.3f} in log-loss ({difference.low:.3f} to {difference.high:.3f})"
    if accuracy is None:
        return text
    link = "but" if accuracy.gain < 0 else "and"
    return f"{text} {link} {_points(accuracy)} of accuracy"


def _points(difference: Difference) -> str:
    values = [100 * value for value in (difference.gain, difference.low, difference.high)]
    return f"{values[0]:.1f} points ({values[1]:.1f} to {values[2]:.1f})"


def _ties(ranked: Sequence[RankedTrial], winner: TrialRecord) -> str:
    """Returns how many trials may be as good, besides the best one and the winner."""
    count = sum(trial.is_tie and trial.record is not winner for trial in ranked)
    others = [trial for trial in ranked[1:] if trial.record is not winner]
    if count == 0:
        return "No other trial is a tie." if others else ""
    return f"{count} other {'trial is a tie' if count == 1 else 'trials are ties'}."
