"""When caching activations pays."""

from dataclasses import replace

import pytest

from drone.model.cost import activation_size, forward_macs, frozen_cost_fraction
from drone.training.activation_cache.policy import (
    CacheWorkload,
    cuts_to_cache,
    decide,
    search_workload,
)
from tests.training.short_runs import short_config

WORKLOAD = CacheWorkload(
    num_train=1000, num_validation=200, side_px=224, disk_gb=10, value_bytes=2, num_runs=30
)


def test_the_cost_of_the_network() -> None:
    # torchvision's MobileNet_V2 has 0.301 * 10^9 multiplications; the classifier has 1.28 * 10^6.
    assert sum(forward_macs(224)) / 1e9 == pytest.approx(0.300, abs=0.001)
    assert activation_size(19, 224) == 1280
    assert activation_size(18, 224) == 320 * 7 * 7
    assert activation_size(14, 224) == 96 * 14 * 14
    assert frozen_cost_fraction(19, 224) == 1 and frozen_cost_fraction(0, 224) == 0


@pytest.mark.parametrize(
    ("changes", "workload", "use", "reason"),
    [
        ({}, {}, True, r"each is read 30 times"),
        ({}, {"num_runs": 1}, False, "each view is read once"),
        ({"views": 2, "epochs": 8}, {"num_runs": 1}, True, "each is read 4 times"),
        ({"augment": {"strength": 0.0}}, {"num_runs": 1}, True, "each is read 2 times"),
        ({}, {"num_runs": 1, "is_cached": True}, True, "reads cached activations"),
        ({"model": {"unfreeze_depth": 19}}, {}, False, "all blocks are trainable"),
        ({"model": {"unfreeze_depth": 18}}, {}, False, "with 18 trainable blocks"),
        ({"model": {"batchnorm": "drift"}}, {}, False, "drift"),
        ({}, {"disk_gb": 0.001}, False, "--activation-cache-gb allows 0.001"),
    ],
)
def test_the_decision_and_its_reason(changes: dict, workload: dict, use: bool, reason: str) -> None:
    decision = decide(short_config(**changes), replace(WORKLOAD, **workload))
    assert decision.use == use
    assert reason in decision.reason


def test_a_search_shares_views_among_trials_of_the_same_strength() -> None:
    sizes = {"num_train": 1000, "num_validation": 200, "side_px": 224, "disk_gb": 10.0}
    workload = search_workload(**sizes, num_trials=30, strengths=(0.0, 0.5, 1.0))
    assert (workload.num_runs, workload.num_strengths) == (15, 2)
    from_a_range = search_workload(**sizes, num_trials=30, strengths=None)
    assert (from_a_range.num_runs, from_a_range.num_strengths) == (1, 1)
    assert cuts_to_cache((0, 5, 19), short_config(), workload) == (19, 14)
    assert cuts_to_cache((), short_config(), workload) == ()
