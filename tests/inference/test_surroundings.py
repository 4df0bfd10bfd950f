"""What the surroundings of a box say is taken from its prediction."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from drone.inference.boxes import Box
from drone.inference.items import Item
from drone.inference.prediction import Views, predict_rows
from drone.inference.surroundings import discount, paint_out
from drone.labels import CLASSES, ClassSet
from drone.serving.predictor import Predictor
from tests.inference.conftest import write_image


def sky(side_px: int = 96) -> NDArray[np.uint8]:
    """A sky that is brighter at the bottom."""
    rows = np.linspace(120, 200, side_px).astype(np.uint8)
    return np.repeat(np.repeat(rows[:, None, None], side_px, axis=1), 3, axis=2)


@pytest.mark.parametrize(("width", "height"), [(1.0, 1.0), (1.0, 0.3), (3.0, 9.0)])
@pytest.mark.parametrize("margin", [0.1, 0.35, 2.0])
def test_an_object_is_painted_out_and_its_surroundings_stay(
    width: float, height: float, margin: float
) -> None:
    empty = sky()
    scale = 96 / (max(width, height) * (1 + 2 * margin))
    left, top = round(48 - width * scale / 2), round(48 - height * scale / 2)
    crop = empty.copy()
    crop[top : 96 - top, left : 96 - left] = (9, 0, 0)
    painted = paint_out(crop, (width, height), margin)
    assert painted.shape == crop.shape and painted.dtype == np.uint8
    difference = np.abs(painted.astype(int) - empty).max(axis=2)
    # The sky is interpolated; nothing of the object is left, but for little at the smallest margin.
    assert difference.mean() < (6 if margin > 0.1 else 20)
    assert difference[:3].max() <= 1 and difference[-3:].max() <= 1


def test_roles_lose_what_the_surroundings_say_and_classes_keep_their_proportions() -> None:
    probs_NK = np.array([[0.5, 0.2, 0.2, 0.1], [0.9, 0.05, 0.03, 0.02]], np.float32)
    around_NK = np.array([[0.8, 0.1, 0.05, 0.05], [0.5, 0.2, 0.2, 0.1]], np.float32)
    result_NK = discount(probs_NK, around_NK, CLASSES, 0.5)
    odds = (0.5 / 0.5) / (0.2 / 0.8) ** 0.5
    assert result_NK[0, 1:].sum() / result_NK[0, 0] == pytest.approx(odds, rel=1e-5)
    assert result_NK[0, 1:] / result_NK[0, 1] == pytest.approx([1, 1, 0.5], rel=1e-5)
    assert result_NK.sum(axis=1) == pytest.approx([1, 1], abs=1e-6)
    # Surroundings that could be of either change nothing, and neither does a share of 0.
    assert result_NK[1] == pytest.approx(probs_NK[1], rel=1e-5)
    assert discount(probs_NK, around_NK, CLASSES, 0) == pytest.approx(probs_NK, rel=1e-5)
    one_role = ClassSet.of(("a", "b", "c", "d"))
    assert discount(probs_NK, around_NK, one_role, 1) == pytest.approx(probs_NK, rel=1e-5)
    certain = np.array([[1, 0, 0, 0]], np.float32)
    assert np.isfinite(discount(certain, certain, CLASSES, 1)).all()


def test_boxes_are_predicted_without_them_and_whole_images_are_not(
    predictor: Predictor, tmp_path: Path
) -> None:
    write_image(tmp_path / "image.png")
    box = Box(path="image.png", x=10, y=10, w=20, h=16, origin="")

    def probabilities(boxes: tuple[Box, ...], **views: float) -> dict[str, float]:
        item = Item(root=str(tmp_path), name="image.png", boxes=boxes)
        (row,) = predict_rows(predictor, [item], views=Views(**views))
        assert row.prediction is not None
        return row.prediction.probabilities

    plain = probabilities((box,), discount=0.0)
    assert probabilities((box,), discount=0.5) != plain
    assert probabilities((box,), discount=1.0) != probabilities((box,), discount=0.5)
    assert probabilities((), discount=1.0) == probabilities((), discount=0.0)
    # A crop of nothing but the box has no surroundings.
    tight = probabilities((box,), margin=0.05, discount=0.0)
    assert probabilities((box,), margin=0.05, discount=1.0) == tight
