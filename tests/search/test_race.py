"""The race: which trials end early, and which do not."""

import pytest

from drone.search.race import Race
from drone.search.study import TrialRecord
from tests.search.studies import EPOCHS, scorer, trial_record

FOLDS = 3


def trial(number: int, quality: float, epochs: int) -> TrialRecord:
    return trial_record(number, [quality] * epochs, num_folds=FOLDS)


@pytest.fixture
def race() -> Race:
    """A race that a good trial has finished."""
    race = Race(scorer(num_folds=FOLDS), grace_epochs=2)
    assert race.judge(trial(0, 3.0, FOLDS * EPOCHS)) is None
    return race


def test_a_trial_that_is_surely_worse_ends_with_its_first_fold(race: Race) -> None:
    pruned = race.judge(trial(1, 2.0, EPOCHS))
    assert pruned is not None and pruned.by == 0
    assert pruned.reason.startswith("worse than trial 0 after 1 fold: log-loss by 0.")


def test_a_hopeless_trial_ends_within_its_first_fold(race: Race) -> None:
    assert race.judge(trial(1, 0.0, 1)) is None  # Within the grace period.
    pruned = race.judge(trial(2, 0.0, EPOCHS // 4))
    assert pruned is not None and "after 2 epochs" in pruned.reason


@pytest.mark.parametrize("quality", [3.0, 4.0])
def test_a_trial_that_may_be_the_best_gets_all_folds(race: Race, quality: float) -> None:
    for epochs in range(1, FOLDS * EPOCHS + 1):
        assert race.judge(trial(1, quality, epochs)) is None


def test_a_lucky_first_fold_does_not_save_a_trial(race: Race) -> None:
    record = trial_record(1, [3.0] * EPOCHS + [1.0] * EPOCHS, num_folds=FOLDS)
    pruned = race.judge(record)
    assert pruned is not None and "after 2 folds" in pruned.reason


def test_the_first_trial_has_nothing_to_be_compared_with() -> None:
    race = Race(scorer(num_folds=FOLDS), grace_epochs=2)
    for epochs in range(1, FOLDS * EPOCHS + 1):
        assert race.judge(trial(0, 0.0, epochs)) is None


def test_a_trial_is_compared_with_the_best_on_the_same_folds(race: Race) -> None:
    assert race.judge(trial(1, 3.6, EPOCHS)) is None
    assert race.judge(trial(2, 3.0, EPOCHS)) is not None
    pruned = race.judge(trial(3, 2.0, 2 * EPOCHS))  # The other has no second fold.
    assert pruned is not None and pruned.by == 0 and "after 2 folds" in pruned.reason


def test_the_better_third_gets_another_fold() -> None:
    race = Race(scorer(num_folds=FOLDS), grace_epochs=2)
    trials = [trial(number, 3 + 0.001 * number, EPOCHS) for number in range(12)]
    for record in trials:
        race.judge(record)
    # The first one is what the others are compared with.
    assert race.judge(trials[0]) is None
    pruned = [race.judge(record) for record in trials[1:]]
    assert sum(one is not None for one in pruned) == 12 - 1 - 4
    reasons = {one.reason for one in pruned if one is not None}
    assert "4 trials were better after 1 fold" in reasons
