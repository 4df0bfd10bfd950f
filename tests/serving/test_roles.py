"""What an image is said to show: first a bird, a drone or something else, then the class."""

from pathlib import Path

import numpy as np
import pytest

from drone.labels import CLASSES, ClassSet
from drone.serving.predictor import Outputs, Predictor
from drone.serving.roles import decide, role_probabilities


def test_classes_of_a_role_are_added_before_they_compete() -> None:
    probs_NK = np.array(
        [
            [0.4, 0.25, 0.2, 0.15],  # A drone with 0.6, though a bird is the most probable class.
            [0.4, 0.1, 0.1, 0.4],
            [0.55, 0.45, 0.0, 0.0],
            [0.1, 0.2, 0.4, 0.3],
        ],
        np.float32,
    )
    assert decide(probs_NK, CLASSES).tolist() == [1, 3, 0, 2]
    assert role_probabilities(probs_NK, CLASSES)[0].tolist() == pytest.approx([0.4, 0.6])


def test_other_objects_compete_as_one_and_classes_of_one_role_alone() -> None:
    probs_NK = np.array([[0.35, 0.2, 0.25, 0.2]], np.float32)
    airport = ClassSet.of(
        ("gull", "drone", "airliner", "kite"), roles=("bird", "drone", "other", "other")
    )
    assert decide(probs_NK, airport).tolist() == [2]
    planes = ClassSet.of(("a", "b", "c", "d"), roles=("other",) * 4)
    assert decide(probs_NK, planes).tolist() == [0]


def test_a_prediction_has_one_opinion(linear: Path) -> None:
    predictor = Predictor(linear, threads=1)
    outputs = Outputs(np.array([[0.4, 0.25, 0.2, 0.15]], np.float32), np.ones(1, np.float32))
    (prediction,) = predictor.to_predictions(outputs)
    assert (prediction.label, prediction.index, prediction.kind) == (CLASSES[1], 1, "drone")
    assert prediction.confidence == pytest.approx(0.25)
    assert prediction.kind_probability == pytest.approx(0.6)
