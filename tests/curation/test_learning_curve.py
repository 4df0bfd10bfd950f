"""Learning curves of features for which it is known what would help."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from drone.curation import advice, learning_curve, power_law, probe
from drone.curation.frozen_features import FrozenFeatures
from drone.curation.learning_curve import ClassGain, CleaningGain, Estimate, LearningCurve
from drone.labels import CLASSES


def curve_of(labels_N: np.ndarray, true_N: np.ndarray, distance: float) -> LearningCurve:
    """Measures the curve of four Gaussian classes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 64)) * distance
    features_ND = (centres[true_N] + rng.normal(size=(len(true_N), 64))).astype(np.float32)
    groups = [str(number) for number in range(len(true_N))]
    features = FrozenFeatures(features_ND, labels_N, groups, CLASSES, pd.DataFrame())
    return learning_curve.measure(features, probe.out_of_fold(features_ND, labels_N, groups))


def test_a_power_law_is_recovered_and_not_extrapolated_far() -> None:
    shares_S = np.array([0.125, 0.25, 0.5, 0.75, 1.0])
    laws = power_law.fit(shares_S, (0.1 + 0.08 * shares_S**-0.5)[:, None])
    assert (laws.a_B[0], laws.b_B[0], laws.c_B[0]) == pytest.approx((0.1, 0.08, 0.5))
    assert laws.errors(2.0)[0] == pytest.approx(0.1 + 0.08 * 2**-0.5)
    with pytest.raises(ValueError, match=r"2\.0 times"):
        laws.errors(2.1)


def test_an_image_of_the_smallest_class_is_worth_most() -> None:
    labels_N = np.repeat(np.arange(4), (200, 200, 60, 200))
    curve = curve_of(labels_N, labels_N, 0.25)
    worth = {
        item.class_name: item.gain.value / item.num_extra for item in curve.by_class if item.gain
    }
    assert max(worth, key=lambda name: worth[name]) == CLASSES[2]
    assert any("20 more Small QuadCopters" in sentence for sentence in advice.sentences(curve))
    measured = [point.accuracy.value for point in curve.points if point.measured]
    assert measured == sorted(measured)
    for point in curve.points:
        assert point.accuracy.low <= point.accuracy.value <= point.accuracy.high
    json.dumps(asdict(curve))


def test_more_images_of_separate_classes_are_not_worth_anything() -> None:
    labels_N = np.repeat(np.arange(4), 100)
    curve = curve_of(labels_N, labels_N, 3.0)
    assert all(item.gain and abs(item.gain.value) < 0.005 for item in curve.by_class)
    assert not any("are worth" in sentence for sentence in advice.sentences(curve))


def test_a_class_with_few_images_gets_a_sentence() -> None:
    labels_N = np.repeat(np.arange(4), (100, 100, 100, 9))
    curve = curve_of(labels_N, labels_N, 0.4)
    assert curve.by_class[3].gain is None
    expected = "Winged Drones: 9 different images are too few to tell what more would bring."
    assert advice.sentences(curve)[-1] == expected


def test_cleaning_wrong_labels_is_worth_what_it_brings() -> None:
    rng = np.random.default_rng(1)
    true_N = np.repeat(np.arange(4), 150)
    wrong_N = rng.random(600) < 0.3
    given_N = np.where(wrong_N, (true_N + rng.integers(1, 4, 600)) % 4, true_N)
    cleaning = curve_of(given_N, true_N, 0.45).labels
    assert cleaning.num_suspects == pytest.approx(wrong_N.sum(), rel=0.25)
    assert cleaning.dropped.low < cleaning.dropped.value < cleaning.dropped.high
    assert cleaning.dropped.value > 0.01


@pytest.mark.parametrize(("images", "extra"), [(1, 1), (5, 2), (30, 10), (201, 70), (640, 200)])
def test_round_numbers_of_images(images: int, extra: int) -> None:
    assert learning_curve.round_third(images) == extra


def test_what_is_certain_comes_first() -> None:
    certain, uncertain = Estimate(0.015, 0.004, 0.026), Estimate(0.03, -0.005, 0.05)
    curve = LearningCurve(
        points=[],
        fit=(0.1, 0.1, 0.5),
        by_class=[
            ClassGain("Flying Birds", 201, 200, 70, uncertain),
            ClassGain("Small QuadCopters", 600, 590, 200, certain),
        ],
        labels=CleaningGain(0, uncertain, uncertain, uncertain),
    )
    assert advice.sentences(curve) == [
        "200 more Small QuadCopters are worth about +1.5 points of accuracy (0.4 to 2.6).",
        "70 more Flying Birds: too few images to tell, between -0.5 and +5.0 points of accuracy.",
    ]


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (Estimate(0.0, 0.0, 0.0), "hardly any difference, between +0.0 and +0.0 points"),
        (Estimate(-0.03, -0.05, -0.01), "worse by about 3.0 points of accuracy (1.0 to 5.0)."),
        (Estimate(0.01, -0.02, 0.04), "too few images to tell, between -2.0 and +4.0 points"),
        (Estimate(0.03, 0.01, 0.05), "is worth about +3.0 points of accuracy (1.0 to 5.0)."),
    ],
)
def test_what_cleaner_labels_bring(gain: Estimate, sentence: str) -> None:
    curve = LearningCurve([], (0.1, 0.1, 0.5), [], CleaningGain(96, gain, gain, gain))
    (said,) = advice.sentences(curve)
    assert said.startswith("Training without the 96 doubtful labels") and sentence in said
