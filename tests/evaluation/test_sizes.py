"""Own sizes against squashing, told honestly."""

import numpy as np
import pytest

from drone.evaluation.asking import ask
from drone.evaluation.metrics import Answers
from drone.evaluation.sizes import Way, by_size, compare

SIDES_N = np.repeat([224, 448, 1792], [20, 60, 20])
LABELS_N = np.arange(100) % 4


def way(name: str, wrong: range, ms: dict[int, float]) -> Way:
    """A way that has all right but some."""
    said_N = LABELS_N.copy()
    said_N[list(wrong)] = (said_N[list(wrong)] + 1) % 4
    probs_NK = np.eye(4, dtype=np.float32)[said_N]
    paths = tuple(map(str, range(100)))
    return Way(name, Answers(paths, LABELS_N, probs_NK, ("a", "b", "c", "d")), ms)


OWN_MS = {224: 8.0, 448: 10.0, 1792: 50.0}
SQUASHED_MS = dict.fromkeys(OWN_MS, 8.0)


def test_accuracy_and_time_by_size() -> None:
    table = by_size(
        SIDES_N, [way("own", range(20, 35), OWN_MS), way("squashed", range(0), SQUASHED_MS)]
    )
    assert list(table["side_px"]) == [224, 448, 1792] and list(table["pictures"]) == [20, 60, 20]
    assert list(table["accuracy"]) == [1, 0.75, 1] and list(table["accuracy_1"]) == [1, 1, 1]
    assert list(table["ms"]) == [8, 10, 50] and list(table["ms_1"]) == [8, 8, 8]
    assert table["low"][1] < 0.75 < table["high"][1]


@pytest.mark.parametrize(
    ("own", "squashed", "verdict"),
    [
        (range(10), range(30), "The resizing network paid"),
        (range(30), range(10), "The resizing network cost"),
        (range(10), range(12), "No difference that 100 pictures could show"),
        (range(10), range(10), "No difference that 100 pictures could show"),
    ],
)
def test_whether_it_paid(own: range, squashed: range, verdict: str) -> None:
    found = compare(
        SIDES_N, way("own", own, OWN_MS), way("squashed to 224 px", squashed, SQUASHED_MS)
    )
    assert found.sentence.startswith(f"{verdict}: accuracy {1 - len(own) / 100:.3f}")
    assert (found.gained, found.lost) == (
        max(0, len(squashed) - len(own)),
        max(0, len(own) - len(squashed)),
    )
    assert found.low <= found.high and 0 <= found.p_value <= 1
    assert found.times_slower == pytest.approx((20 * 8 + 60 * 10 + 20 * 50) / 800)


def test_answers_come_in_the_order_of_the_pictures() -> None:
    rng = np.random.default_rng(0)
    sides_N = rng.permutation(SIDES_N)
    seen: list[set[int]] = []

    def gather(positions_B: np.ndarray) -> np.ndarray:
        seen.append(set(sides_N[positions_B]))
        return positions_B

    def answer(positions_B: np.ndarray) -> np.ndarray:
        return np.stack([positions_B, sides_N[positions_B]], axis=1).astype(np.float32)

    found = ask(answer, sides_N, gather)
    assert np.array_equal(found, np.stack([np.arange(100), sides_N], axis=1))
    assert all(len(sides) == 1 for sides in seen)
