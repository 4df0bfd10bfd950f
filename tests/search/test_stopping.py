"""When a study knows enough."""

import numpy as np

from drone.search.stopping import outlook
from drone.search.study import TrialRecord
from tests.search.studies import EPOCHS, scorer, trial_record


def study(spread: float, count: int = 12) -> list[TrialRecord]:
    """Trials whose qualities are this far apart."""
    qualities = 3 + spread * np.random.default_rng(0).normal(size=count)
    return [
        trial_record(number, [float(quality)] * EPOCHS, "finished")
        for number, quality in enumerate(qualities)
    ]


def test_a_study_of_equals_knows_enough() -> None:
    found = outlook(study(0.0), scorer(), num_more=18, num_folds=1)
    assert found is not None and found.is_sure
    sentence = found.sentence("log_loss")
    assert "Enough after 12 trials: their scores (log-loss) differ by no more than the" in sentence
    assert "--no-until-sure runs all 30." in sentence


def test_a_study_of_unequals_goes_on_until_few_trials_are_left() -> None:
    records = study(1.0)
    far, near = (outlook(records, scorer(), num_more=count, num_folds=1) for count in (100, 0))
    assert far is not None and not far.is_sure and far.gain > far.noise > 0
    assert near is not None and near.is_sure and near.gain == 0


def test_too_few_trials_say_nothing() -> None:
    assert outlook(study(0.0, 9), scorer(), 20, 1) is None
    unfinished = [trial_record(number, [3.0]) for number in range(12)]
    assert outlook(unfinished, scorer(), 20, 1) is None
    assert outlook([], scorer(), 20, 1) is None
