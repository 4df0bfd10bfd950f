"""Which trials the schedulers of Ray Tune prune; without a running Ray."""

import pytest

from drone.cluster.schedulers import _grace_epochs, make_pruner
from drone.search.scoring import Objective
from drone.search.space import DEFAULT
from tests.search.studies import BASE, EPOCHS, scorer, trial_record

GRACE_EPOCHS = _grace_epochs(BASE, DEFAULT)


@pytest.mark.parametrize("name", ["asha", "median"])
@pytest.mark.parametrize("objective", ["log_loss", "macro_f1"])
def test_a_lagging_trial_is_pruned_but_not_before_its_head_is_trained(
    name: str, objective: Objective
) -> None:
    pruner = make_pruner(name, BASE, DEFAULT, scorer(objective=objective))
    for number in range(6):
        good = trial_record(number, [2.0 + number / 2] * 7, objective=objective)
        assert not pruner.replay(good)
    young = trial_record(7, [0.3] * (GRACE_EPOCHS - 1), objective=objective)
    assert not pruner.replay(young)
    pruned = [
        pruner.replay(trial_record(10 + epochs, [0.3] * epochs, objective=objective)) is not None
        for epochs in range(1, EPOCHS)
    ]
    assert any(pruned[GRACE_EPOCHS - 1 :]) and not any(pruned[: GRACE_EPOCHS - 1])
    leading = trial_record(9, [6.0] * (GRACE_EPOCHS + 3), objective=objective)
    assert not pruner.replay(leading)


def test_a_trial_that_is_complete_is_not_pruned() -> None:
    pruner = make_pruner("asha", BASE, DEFAULT, scorer(num_folds=2))
    for number in range(6):
        whole = [2.0 + number / 2] * 2 * EPOCHS
        assert not pruner.replay(trial_record(number, whole, num_folds=2))


def test_no_trial_is_pruned_without_a_scheduler() -> None:
    pruner = make_pruner("none", BASE, DEFAULT, scorer())
    for number in range(6):
        pruner.replay(trial_record(number, [3.0] * EPOCHS))
    assert not pruner.replay(trial_record(8, [0.3] * 7))
