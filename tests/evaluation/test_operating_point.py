"""Thresholds of an alarm, and the false alarms that they cost."""

import math

import numpy as np
import pytest

from drone.evaluation.operating_point import (
    RECALLS,
    AlarmScores,
    choose_threshold,
    find_operating_point,
    judge,
    smallest_rate,
    table,
)


def random_scores(num_drones: int = 300, num_birds: int = 80, seed: int = 0) -> AlarmScores:
    """Scores of drones and birds that overlap; some images are none of the classes."""
    rng = np.random.default_rng(seed)
    drones, birds = rng.beta(4, 1, num_drones), rng.beta(1, 4, num_birds)
    drones[: num_drones // 50] = np.nan
    return AlarmScores(drones, birds, np.zeros(0), rng.beta(2, 2, 40))


@pytest.mark.parametrize("recall", [0.1, 0.5, 0.9, 0.95, 0.98])
def test_the_highest_threshold_that_catches_enough_drones(recall: float) -> None:
    drones = random_scores().drones
    found = choose_threshold(drones, recall)
    assert found is not None
    enough = [t for t in np.arange(0, 10_001) / 10_000 if (drones >= t).mean() >= recall]
    assert found == enough[-1]


def test_a_recall_that_none_of_these_makes_impossible() -> None:
    scores = random_scores()
    assert scores.reachable == pytest.approx(294 / 300)
    assert choose_threshold(scores.drones, 0.98) is not None
    assert choose_threshold(scores.drones, 0.99) is None


def test_a_share_of_drones_that_is_a_whole_number() -> None:
    # In floating point 0.95 * 20 and 0.07 * 100 are 19 and a little more than 7.
    assert choose_threshold(np.linspace(0.05, 1, 20), 0.95) == 0.1
    assert choose_threshold(np.linspace(0.01, 1, 100), 0.07) == 0.94


def test_the_operating_point() -> None:
    scores = random_scores()
    point = find_operating_point(scores)
    assert point is not None and tuple(point.at) == RECALLS
    at = point.at[0.9]
    assert at is not None and at.drones.value >= 0.9
    assert at.birds.value == (scores.birds >= at.threshold).mean()
    assert at.negatives.value == (scores.negatives >= at.threshold).mean()
    assert point.at[0.99] is None and point.as_dict()["at_recall"]["0.99"] is None
    figures = point.as_dict()["at_recall"]["0.9"]
    assert figures["threshold"] == at.threshold and figures["recall"]["support"] == 300
    per_1000 = figures["false_alarms_per_1000_birds"]
    assert per_1000["value"] == pytest.approx(1000 * at.birds.value)
    assert per_1000["low"] <= per_1000["value"] <= per_1000["high"]


def test_the_curve_falls_as_the_threshold_rises() -> None:
    point = find_operating_point(random_scores(num_drones=5000))
    assert point is not None
    frame = table(point)
    assert 150 < len(frame) <= 200
    assert frame["threshold"].is_monotonic_increasing
    for name in ("recall", "per_1000_birds", "per_1000_negatives"):
        assert frame[name].is_monotonic_decreasing
        assert (frame[f"{name}_low"] <= frame[name]).all()
        assert (frame[name] <= frame[f"{name}_high"]).all()
    assert frame["recall"].iloc[0] == point.reachable


def test_what_there_are_no_images_of_is_left_out() -> None:
    nothing = np.zeros(0)
    drones = np.array([0.2, 0.9])
    point = find_operating_point(AlarmScores(drones, nothing, nothing, nothing))
    assert point is not None
    assert list(table(point)) == ["threshold", "recall", "recall_low", "recall_high"]
    assert set(point.as_dict()["at_recall"]["0.9"]) == {"threshold", "recall"}
    assert point.few_birds == "There are no birds, so nothing is known of false alarms on birds."
    assert find_operating_point(AlarmScores(nothing, drones, drones, drones)) is None
    assert find_operating_point(AlarmScores(np.array([np.nan]), drones, drones, drones)) is None


def test_the_rule_of_three() -> None:
    # Exact: the rate at which no case among N is seen with a probability of 5 %.
    for count in (30, 100, 3000):
        assert smallest_rate(count) == pytest.approx(1000 * (1 - 0.05 ** (1 / count)), rel=0.06)
    assert smallest_rate(0) == math.inf
    few, many = (find_operating_point(random_scores(num_birds=count)) for count in (30, 3000))
    assert few is not None and many is not None
    assert few.few_birds.startswith("30 birds cannot show fewer than 100 false alarms per 1,000")
    assert many.few_birds == ""


def test_too_few_birds_cannot_pass() -> None:
    passed, figures = judge(random_scores(num_birds=149), 20, 0.1)
    assert not passed and "149 birds" in figures and "at least 150 birds are needed" in figures


def test_the_measured_false_alarms_are_judged() -> None:
    scores = random_scores(num_birds=1000)
    threshold = choose_threshold(scores.drones, 0.95)
    assert threshold is not None
    measured = 1000 * float((scores.birds >= threshold).mean())
    assert measured > 10
    assert judge(scores, measured, 0.95)[0]
    passed, figures = judge(scores, measured - 1, 0.95)
    assert not passed
    assert f"{measured:.1f} per 1,000 birds" in figures and f"{threshold:g}" in figures


def test_a_recall_out_of_reach_does_not_pass() -> None:
    passed, figures = judge(random_scores(num_birds=1000), 500, 0.99)
    assert not passed and figures.startswith("98.0% of the drones can raise an alarm")
