"""Multi-resolution inference against resizing all images to 224 px."""

import numpy as np
import pytest

from drone.evaluation.metrics import Predictions
from drone.evaluation.mixed_resolution import Variant, by_size, compare
from drone.labels import ClassSet

SIDES_N = np.repeat([224, 448, 1792], [20, 60, 20])
LABELS_N = np.arange(100) % 4

MIXED_MS = {224: 8.0, 448: 10.0, 1792: 50.0}
SQUASHED_MS = dict.fromkeys(MIXED_MS, 8.0)


def variant(name: str, wrong: range, latency_ms: dict[int, float]) -> Variant:
    """A variant that predicts all images right except some."""
    predicted_N = LABELS_N.copy()
    predicted_N[list(wrong)] = (predicted_N[list(wrong)] + 1) % 4
    probs_NK = np.eye(4, dtype=np.float32)[predicted_N]
    paths = tuple(map(str, range(100)))
    known_N = np.ones(100, np.float32)
    predictions = Predictions(paths, LABELS_N, probs_NK, ClassSet.of("abcd"), known_N)
    return Variant(name, predictions, latency_ms)


def test_accuracy_and_latency_by_size() -> None:
    table = by_size(
        SIDES_N,
        [variant("mixed", range(20, 35), MIXED_MS), variant("squashed", range(0), SQUASHED_MS)],
    )
    assert list(table["side_px"]) == [224, 448, 1792] and list(table["images"]) == [20, 60, 20]
    assert list(table["accuracy"]) == [1, 0.75, 1] and list(table["accuracy_1"]) == [1, 1, 1]
    assert list(table["ms"]) == [8, 10, 50] and list(table["ms_1"]) == [8, 8, 8]
    assert table["low"][1] < 0.75 < table["high"][1]


@pytest.mark.parametrize(
    ("mixed", "squashed", "verdict"),
    [
        (range(10), range(30), "The resizer pays"),
        (range(30), range(10), "The resizer costs accuracy"),
        (range(10), range(12), "No significant difference on 100 images"),
        (range(10), range(10), "No significant difference on 100 images"),
    ],
)
def test_the_verdict(mixed: range, squashed: range, verdict: str) -> None:
    comparison = compare(
        SIDES_N,
        variant("mixed", mixed, MIXED_MS),
        variant("squashed to 224 px", squashed, SQUASHED_MS),
    )
    assert comparison.sentence.startswith(f"{verdict}: accuracy {1 - len(mixed) / 100:.3f}")
    assert (comparison.gained, comparison.lost) == (
        max(0, len(squashed) - len(mixed)),
        max(0, len(mixed) - len(squashed)),
    )
    assert comparison.low <= comparison.high and 0 <= comparison.p_value <= 1
    assert comparison.slowdown == pytest.approx((20 * 8 + 60 * 10 + 20 * 50) / 800)
