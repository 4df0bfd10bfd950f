"""When keeping activations pays."""

from dataclasses import replace

import pytest

from drone.model.cost import forward_macs, saved_share, values_at
from drone.training.planner import Extent, decide
from tests.training.runs import quick

EXTENT = Extent(train=1000, validation=200, side_px=224, disk_gb=10, value_bytes=2, runs=30)


def test_cost_of_the_network() -> None:
    # torchvision's MobileNet_V2 has 0.301 * 10^9 multiplications; the classifier has 1.28 * 10^6.
    assert sum(forward_macs(224)) / 1e9 == pytest.approx(0.300, abs=0.001)
    assert values_at(19, 224) == 1280
    assert values_at(18, 224) == 320 * 7 * 7
    assert values_at(14, 224) == 96 * 14 * 14
    assert saved_share(19, 224) == 1 and saved_share(0, 224) == 0


@pytest.mark.parametrize(
    ("changes", "extent", "reuse", "reason"),
    [
        ({}, {}, True, r"each is read 30 times"),
        ({}, {"runs": 1}, False, "each view is seen once"),
        ({"views": 2, "epochs": 8}, {"runs": 1}, True, "each is read 4 times"),
        ({"augment": {"strength": 0.0}}, {"runs": 1}, True, "each is read 2 times"),
        ({}, {"runs": 1, "kept_already": True}, True, "reads kept activations"),
        ({"model": {"unfreeze_depth": 19}}, {}, False, "all blocks learn"),
        ({"model": {"unfreeze_depth": 18}}, {}, False, "others take only"),
        ({"model": {"batchnorm": "drift"}}, {}, False, "drift"),
        ({}, {"disk_gb": 0.001}, False, "--features-disk allows 0.001"),
    ],
)
def test_what_the_planner_says(changes: dict, extent: dict, reuse: bool, reason: str) -> None:
    said = decide(quick(**changes), replace(EXTENT, **extent))
    assert said.reuse == reuse
    assert reason in said.reason
