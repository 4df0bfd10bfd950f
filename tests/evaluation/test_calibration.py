import numpy as np
import pytest

from drone.evaluation.calibration import Calibration, choose_unsure_threshold, fit_temperature
from drone.labels import ClassSet
from drone.serving.predictor import apply_temperature
from tests.evaluation.made_predictions import random_predictions


def test_the_temperature_that_was_applied_is_found() -> None:
    predictions = random_predictions(4000)
    base = fit_temperature(predictions.probs_NK, predictions.labels_N)
    overconfident_NK = apply_temperature(predictions.probs_NK, 0.5)
    assert fit_temperature(overconfident_NK, predictions.labels_N) == pytest.approx(
        2 * base, rel=1e-2
    )


def test_the_lowest_threshold_that_reaches_95_percent() -> None:
    # Confidence 0.40 to 0.79; right from 0.42 on, so 38 of 40 are right without any threshold.
    confidence_N = np.linspace(0.40, 0.79, 40, dtype=np.float32)
    probs_NK = np.stack([confidence_N, 1 - confidence_N, *np.zeros((2, 40), np.float32)], axis=1)
    labels_N = probs_NK.argmax(axis=1)
    wrong_N = confidence_N < 0.415
    labels_N[wrong_N] = 3
    classes = ClassSet.of(("a", "b", "c", "d"))
    assert choose_unsure_threshold(probs_NK, labels_N, classes) == 0.0
    labels_N[confidence_N > 0.76] = 3  # No threshold reaches 95 % now: a quarter is unsure.
    expected = round(float(np.quantile(probs_NK.max(axis=1), 0.25)), 2)
    assert choose_unsure_threshold(probs_NK, labels_N, classes) == expected


def test_metadata_keeps_all_digits() -> None:
    metadata = Calibration(temperature=1.2345, unsure_below=0.1 + 0.2).as_metadata()
    expected = {"temperature": "1.2345", "unsure_below": "0.30000000000000004"}
    assert metadata == {**expected, "known_above": "0.5"}
