"""The card of conditions."""

from typing import Any

import numpy as np
import pytest

from drone.data.conditions import CONDITIONS
from drone.evaluation import conditions, plots
from drone.labels import CLASSES, ClassSet


class ByBrightness:
    """A model that calls bright images drones and dark ones birds."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def predict_pixels(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        bright_N = pixels_NHWC.mean(axis=(1, 2, 3)) > self.threshold
        return np.where(bright_N[:, None], [0.1, 0.7, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1])


LABELS = np.array([0] * 30 + [1] * 270)


def load(positions: np.ndarray) -> np.ndarray:
    values = np.where(LABELS[positions] == 0, 20, 160).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (len(positions), 32, 32, 3)).copy()


def card(classes: ClassSet = CLASSES, **models: Any) -> conditions.Card:
    return conditions.make_card(models or {"a": ByBrightness(100)}, LABELS, classes, load)


def test_what_a_condition_costs_is_on_the_card() -> None:
    made = card(a=ByBrightness(100), b=ByBrightness(1))
    assert made.num_images == 200
    first, *rest = made.rows
    assert (first.accuracy.value, first.severity, first.text) == (1.0, 0, "as they are")
    assert len(rest) == sum(len(condition.levels) for condition in CONDITIONS)
    darkness = [row for row in rest if row.condition == "darkness"]
    # At half of the light drones of 160 are dark already; birds stay what they are.
    assert [row.drone_recall.value for row in darkness if row.drone_recall] == [0.0] * 5
    assert {row.birds_right.value for row in darkness if row.birds_right} == {1.0}
    assert {row.drone_recall.support for row in darkness if row.drone_recall} == {180}
    assert made.mean_accuracies["darkness"] == pytest.approx(0.1)
    assert made.mean_accuracies["grey"] == 1.0
    # The other model calls everything a drone that has any light.
    beside = made.beside["b"][0]
    assert beside.birds_right and beside.birds_right.value == 0.0
    table = conditions.table(made)
    assert len(table) == len(made.rows) and table["drone_recall of b"].iloc[0] == 1.0
    assert [row.text for row in made.extremes][:3] == [
        "as they are",
        "object 128 px wide",
        "object 8 px wide",
    ]
    assert len(plots.conditions(made).axes) == len(CONDITIONS)


def test_the_sample_is_fixed_and_holds_each_class_by_its_share() -> None:
    shown: list[np.ndarray] = []

    def remembered(positions: np.ndarray) -> np.ndarray:
        shown.append(positions)
        return load(positions)

    for _ in range(2):
        conditions.make_card({"a": ByBrightness(100)}, LABELS, CLASSES, remembered)
    assert np.array_equal(*shown) and len(set(shown[0])) == 200
    assert (LABELS[shown[0]] == 0).sum() == 20


def test_without_birds_there_is_no_recall_of_drones() -> None:
    made = card(classes=ClassSet.of(("planes", "kites", "balloons", "moons")))
    assert made.rows[0].drone_recall is None and made.rows[0].birds_right is None
    assert "drone_recall" not in conditions.table(made)
    assert made.as_dict()["rows"][0]["drone_recall"] is None
    assert len(plots.conditions(made).axes) == len(CONDITIONS)
