import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from drone.evaluation.metrics import (
    Predictions,
    calibration_error,
    describe,
    score,
    worst_mistakes,
)
from drone.labels import CLASSES, ClassSet
from tests.evaluation.made_predictions import random_predictions


def predictions(
    labels_N: np.ndarray, probs_NK: np.ndarray, classes: ClassSet = CLASSES
) -> Predictions:
    paths = tuple(map(str, range(len(labels_N))))
    return Predictions(paths, labels_N, probs_NK, classes, np.ones(len(labels_N), np.float32))


def test_scores_equal_those_of_scikit_learn() -> None:
    predictions = random_predictions()
    scores = score(predictions)
    labels_N, predicted_N = predictions.labels_N, predictions.predicted_N
    assert scores.accuracy == pytest.approx(accuracy_score(labels_N, predicted_N))
    assert scores.macro_f1 == pytest.approx(f1_score(labels_N, predicted_N, average="macro"))
    assert scores.confusion_KK.sum() == scores.support == 200
    assert scores.accuracy_low < scores.accuracy < scores.accuracy_high


def test_the_interval_is_the_published_one() -> None:
    # 5,235 of 5,828 right: 89.82 %, from 89.0 to 90.6.
    labels = np.zeros(5828, dtype=np.int64)
    probs = np.tile(np.float32([0.9, 0.1, 0, 0]), (5828, 1))
    probs[5235:] = [0.1, 0.9, 0, 0]
    scores = score(predictions(labels, probs))
    assert scores.accuracy == pytest.approx(0.8982, abs=1e-4)
    assert scores.accuracy_low == pytest.approx(0.890, abs=5e-4)
    assert scores.accuracy_high == pytest.approx(0.906, abs=5e-4)
    # Classes without images do not count.
    assert scores.macro_f1 == pytest.approx(2 * 5235 / (5828 + 5235))


def test_calibration_error() -> None:
    confidence = np.float32([0.8] * 10)
    right = np.array([True] * 8 + [False] * 2)
    assert calibration_error(confidence, right) == pytest.approx(0, abs=1e-6)
    assert calibration_error(confidence, np.zeros(10, bool)) == pytest.approx(0.8, abs=1e-6)


def test_bird_or_drone_ignores_the_kind_of_drone() -> None:
    labels = np.array([0, 0, 1, 2])
    probs = np.float32(
        [[0.6, 0.4, 0, 0], [0.4, 0.3, 0.2, 0.1], [0.3, 0, 0.7, 0], [0.4, 0.2, 0.2, 0.2]]
    )
    scores = score(predictions(labels, probs))
    # The last is more likely some drone than a bird, although bird is its most probable class.
    assert scores.bird_or_drone == 0.75
    no_birds = score(predictions(np.array([0, 1]), probs[:2, :2], ClassSet.of(("x", "y"))))
    assert no_birds.bird_or_drone is None


def test_the_most_confident_mistakes_come_first() -> None:
    predictions = random_predictions()
    positions = worst_mistakes(predictions, 2, max_count=5)
    assert len(positions) == 5
    assert (np.diff(predictions.confidence_N[positions]) <= 0).all()
    assert all(
        predictions.labels_N[position] == 2 != predictions.predicted_N[position]
        for position in positions
    )


def test_macro_f1_by_the_weights_of_the_classes() -> None:
    made = random_predictions()
    scores = score(made, (1.0, 1.0, 1.0, 3.0))
    f1 = scores.by_class["f1"].to_numpy()
    assert scores.weighted_f1 == pytest.approx((f1[:3].sum() + 3 * f1[3]) / 6)
    assert f"by the class weights {scores.weighted_f1:.3f}" in describe(scores)
    assert score(made).weighted_f1 is None and "class weights" not in describe(score(made))
