"""Images under worse conditions."""

import numpy as np
import pytest

from drone.data.conditions import CONDITIONS, Condition, blurred, dark, desaturated, hazy, reduced


def checkers(side: int = 224, cell: int = 4) -> np.ndarray:
    """Black and white squares, tinted."""
    rows, columns = np.indices((side, side)) // cell
    return ((rows + columns) % 2 * 255)[..., None].astype(np.uint8) * np.uint8([1, 1, 0])


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
@pytest.mark.parametrize("side", [64, 224])
def test_an_image_gets_worse_with_each_level_and_the_same_each_time(
    condition: Condition, side: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    image = image.repeat(8, axis=0).repeat(8, axis=1)
    original = image.copy()
    changed = [condition.apply(image, level, rng()) for level in condition.levels]
    assert all(item.shape == image.shape and item.dtype == np.uint8 for item in changed)
    # Infrared tones differ from the image in more than their blur, which is the level.
    start = changed[0] if condition.name == "infrared" else image
    distances = [np.abs(item.astype(int) - start).mean() for item in changed]
    assert distances[-1] > 0 and distances == sorted(distances)
    again = condition.apply(image, condition.levels[-1], rng())
    assert np.array_equal(again, changed[-1]) and np.array_equal(image, original)
    assert condition.text.format(condition.levels[0])


def test_detail_below_the_size_of_an_object_far_away_is_gone() -> None:
    image = checkers(cell=4)
    assert np.array_equal(reduced(image, 224, rng()), image)
    assert reduced(image, 112, rng())[..., 0].std() > 60
    assert reduced(image, 14, rng())[..., 0].std() < 5
    # In pixels of an image of 224 px, whatever the image has.
    assert reduced(checkers(448, 8), 14, rng())[..., 0].std() < 5


def test_light_and_colour() -> None:
    image = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    assert dark(image, 0.25, rng()).mean(axis=(0, 1)) == pytest.approx([50, 25, 12.5], abs=1)
    assert hazy(image, 0.5, rng())[0, 0].tolist() == [208, 158, 133]
    grey = desaturated(image, 0.0, rng())[0, 0]
    assert grey.tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)] * 3
    assert np.array_equal(blurred(image, 3, rng()), image)
