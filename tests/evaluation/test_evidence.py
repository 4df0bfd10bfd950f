"""Evidence of evaluated images, and the share of it outside of boxes."""

from pathlib import Path

import numpy as np
import pytest

from drone.evaluation.evidence import OutsideShare, evidence_loader, outside_boxes
from drone.serving.predictor import Predictor
from tests.serving.conftest import exported, model

__all__ = ["exported", "model"]  # Fixtures.

EVEN = np.ones((7, 7), np.float32)


def test_evidence_is_loaded_for_the_positions_in_their_order(exported: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    predictor = Predictor(exported)
    load_evidence = evidence_loader(predictor, np.full(5, 64), lambda at: pixels[at])
    maps_MKHW = load_evidence(np.array([4, 1]))
    for map_KHW, position in zip(maps_MKHW, (4, 1), strict=True):
        outputs = predictor.predict_outputs(pixels[position][None], evidence=True)
        assert outputs.evidence_NKHW is not None
        np.testing.assert_allclose(map_KHW, outputs.evidence_NKHW[0], atol=1e-5)
    assert len(load_evidence(np.zeros(0, np.int64))) == 0


def box(*shares: float) -> np.ndarray:
    return np.array([shares])


@pytest.mark.parametrize(
    ("shares", "num_touched"),
    [
        ((0, 0, 1, 1), 49),
        ((0, 0, 1 / 7, 1 / 7), 1),
        ((0.01, 0.01, 0.02, 0.02), 1),  # Smaller than a cell, which still counts as a whole.
        ((0.1, 0.1, 0.2, 0.2), 4),  # Across the corner of four cells.
        ((0, 0.5, 1, 0.51), 7),
    ],
)
def test_cells_that_a_box_touches_are_inside(shares: tuple[float, ...], num_touched: int) -> None:
    found = outside_boxes(EVEN[None], [box(*shares)], ["bird"])
    assert found is not None
    expected = 1 - num_touched / 49
    assert (found.overall.evidence, found.overall.area) == pytest.approx((expected, expected))


def test_several_boxes_of_an_image_count_once() -> None:
    boxes = np.array([[0, 0, 0.3, 0.3], [0.1, 0.1, 0.4, 0.4], [0.9, 0.9, 1, 1]])
    found = outside_boxes(EVEN[None], [boxes], ["bird"])
    assert found is not None and found.overall.area == pytest.approx(1 - 10 / 49)


def test_evidence_against_the_class_does_not_count() -> None:
    map_HW = -EVEN.copy()
    map_HW[0, 0], map_HW[6, 6] = 3, 1
    found = outside_boxes(map_HW[None], [box(0, 0, 0.1, 0.1)], ["bird"])
    assert found is not None and found.overall.evidence == pytest.approx(0.25)


def test_means_by_class_and_images_without_any_evidence() -> None:
    inside, outside = np.zeros((7, 7)), np.zeros((7, 7))
    inside[0, 0], outside[6, 6] = 2, 5
    maps_MHW = np.stack([inside, outside, outside, -EVEN]).astype(np.float32)
    corner = box(0, 0, 0.1, 0.1)
    found = outside_boxes(maps_MHW, [corner] * 4, ["bird", "bird", "drone", "plane"])
    assert found is not None
    area = pytest.approx(48 / 49)
    assert found.by_class == {"bird": OutsideShare(0.5, area, 2), "drone": OutsideShare(1, area, 1)}
    assert found.overall == OutsideShare(pytest.approx(2 / 3), area, 3)
    assert outside_boxes(maps_MHW[3:], [corner], ["plane"]) is None
