"""Which trials are pruned; without a running Ray."""

import pytest

from drone.cluster.schedulers import _grace_epochs, make_scheduler, replay
from drone.search.space import DEFAULT
from tests.search.studies import BASE, EPOCHS, trial_record

GRACE_EPOCHS = _grace_epochs(BASE, DEFAULT)


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_lagging_trial_is_pruned_but_not_before_its_head_is_trained(name: str) -> None:
    scheduler = make_scheduler(name, BASE, DEFAULT)
    for number in range(6):
        good = trial_record(number, [0.8 + number / 100] * 7)
        assert not replay(scheduler, f"good-{number}", good)
    young = trial_record(7, [0.1] * (GRACE_EPOCHS - 1))
    assert not replay(scheduler, "young", young)
    pruned = [
        replay(scheduler, f"lagging-{epochs}", trial_record(epochs, [0.1] * epochs))
        for epochs in range(1, EPOCHS)
    ]
    assert any(pruned[GRACE_EPOCHS - 1 :]) and not any(pruned[: GRACE_EPOCHS - 1])
    assert not replay(scheduler, "leading", trial_record(9, [0.9] * (GRACE_EPOCHS + 3)))


def test_no_trial_is_pruned_without_a_scheduler() -> None:
    scheduler = make_scheduler("none", BASE, DEFAULT)
    for number in range(6):
        replay(scheduler, f"good-{number}", trial_record(number, [0.8] * EPOCHS))
    assert not replay(scheduler, "bad", trial_record(8, [0.1] * 7))
