"""The stability index, the reference of a model, and the window of a server."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from drone.labels import CLASSES, NONE
from drone.serving.drift import (
    EDGES,
    MIN_ANSWERS,
    Reference,
    Window,
    index_by_chance,
    stability_index,
)
from drone.serving.predictor import Prediction


def answer(index: int = 0, confidence: float = 0.9, known: float = 0.9) -> Prediction:
    rest = (1 - confidence) / 3
    probs = {name: confidence if at == index else rest for at, name in enumerate(CLASSES)}
    return Prediction(
        index, CLASSES[index] if known >= 0.5 else NONE, probs, None, None, None, known
    )


def answers(random: np.random.Generator, number: int, shift: float = 0.0) -> list[Prediction]:
    """Answers as of one place; a shift makes their known scores lower."""
    return [
        answer(
            int(random.integers(4)),
            float(random.uniform(0.3, 1)),
            float(np.clip(random.beta(5, 1) - shift, 0, 1)),
        )
        for _ in range(number)
    ]


def counted(values: Sequence[float]) -> NDArray[np.int64]:
    return np.bincount(np.digitize(values, EDGES), minlength=len(EDGES) + 1)


def test_the_index_is_that_of_its_formula() -> None:
    assert stability_index([30, 70], [30, 70]) == 0
    p, q = np.array([30.5, 70.5]) / 101, np.array([60.5, 40.5]) / 101
    assert stability_index([30, 70], [60, 40]) == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert np.isfinite(stability_index([100, 0], [0, 100]))


def test_chance_exceeds_its_bound_once_in_a_hundred() -> None:
    random = np.random.default_rng(0)
    shares = [0.05, 0.05, 0.1, 0.2, 0.25, 0.35]
    pairs = zip(*(random.multinomial(number, shares, 4000) for number in (300, 800)), strict=True)
    indices = np.array([stability_index(first, second) for first, second in pairs])
    assert 0.005 < (indices > index_by_chance(6, 300, 800)).mean() < 0.02


def test_a_reference_has_the_counts_of_its_answers_and_travels_as_text() -> None:
    made = answers(np.random.default_rng(0), 200, shift=0.3)
    reference = Reference.of(made, len(CLASSES))
    labels = [item.label for item in made]
    assert reference.classes == tuple(labels.count(name) for name in (*CLASSES, NONE))
    assert list(reference.confidence) == list(counted([item.confidence for item in made]))
    assert list(reference.known) == list(counted([item.known for item in made]))
    assert Reference.from_metadata(reference.as_metadata(), len(CLASSES)) == reference
    assert Reference.from_metadata({}, len(CLASSES)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [1, 2]}, "not of 4 classes|not of the same images"),
        ({"classes": [9, 0, 0, 0, 0]}, "not of the same images"),
        ({"confidence": [10]}, "do not have 9 bins"),
        ({"known": [-1, 11, 0, 0, 0, 0, 0, 0, 0]}, "no counts"),
        ({"edges": list(EDGES[::-1])}, "must ascend"),
        ({"edges": ["a"] * 8}, "must be numbers"),
    ],
)
def test_a_damaged_reference_is_named(change: dict, message: str) -> None:
    reference = Reference.of([answer()] * 10, len(CLASSES))
    fields = json.loads(reference.as_metadata()["reference"]) | change
    with pytest.raises(ValueError, match=message):
        Reference.from_metadata({"reference": json.dumps(fields)}, len(CLASSES))


def test_a_window_notices_what_has_changed_and_forgets_what_is_old() -> None:
    random = np.random.default_rng(0)
    window = Window(Reference.of(answers(random, 400), len(CLASSES)))
    for item in answers(random, MIN_ANSWERS - 1):
        window.add(item)
    assert window.drift() == {} and window.num_answers == MIN_ANSWERS - 1
    for item in answers(random, 3000):
        window.add(item)
    assert window.num_answers == 1000
    for aspect in window.drift().values():
        assert aspect.index < aspect.by_chance
    for item in answers(random, 1000, shift=0.2):
        window.add(item)
    drift = window.drift()
    assert drift["known"].index > max(0.25, drift["known"].by_chance)
    assert drift["confidence"].index < drift["confidence"].by_chance
    # The counts are those of the latest thousand alone.
    for item in answers(random, 1000):
        window.add(item)
    assert window.drift()["known"].index < 0.1
