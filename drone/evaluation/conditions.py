"""The card of conditions: how a model does as its images get worse, on a fixed sample of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.data.conditions import CONDITIONS, Condition
from drone.evaluation.batch_inference import LoadPixels, Track, no_progress, predict_in_batches
from drone.evaluation.metrics import Proportion, called_drones, proportion
from drone.labels import ClassSet
from drone.serving.predictor import Predictor
from drone.serving.roles import decide

_MAX_IMAGES = 200
"""Images of the sample; with more, a card would take minutes on a processor."""

_UNCHANGED = "as they are"
"""Text of the first row."""


@dataclass(frozen=True)
class Row:
    """Scores of a model under one condition at one level."""

    condition: str
    """Name of the condition; empty for the images as they are."""

    severity: int
    """1 is the mildest; 0 for the images as they are."""

    level: float | None
    """Level of the condition; None for the images as they are."""

    text: str
    """The level in words."""

    accuracy: Proportion
    drone_recall: Proportion | None
    """Share of the drones that are called a drone of any kind; None without birds or drones."""

    birds_right: Proportion | None
    """Share of the birds that are called birds; None without birds or drones."""


@dataclass(frozen=True)
class Card:
    """Scores under all conditions, beside those of another model."""

    rows: tuple[Row, ...]
    beside: Mapping[str, tuple[Row, ...]]
    """Rows of other models on the same images, by their names."""

    @property
    def num_images(self) -> int:
        """Number of images in the sample."""
        return self.rows[0].accuracy.support

    @property
    def conditions(self) -> list[str]:
        """Names of the conditions, in order."""
        return list(dict.fromkeys(row.condition for row in self.rows if row.condition))

    @property
    def mean_accuracies(self) -> dict[str, float]:
        """Mean accuracy over the levels of each condition."""
        return {
            name: float(np.mean([row.accuracy.value for row in self._of(name)]))
            for name in self.conditions
        }

    @property
    def extremes(self) -> list[Row]:
        """The images as they are, then the mildest and the worst level of each condition."""
        parts = [self._of(name) for name in self.conditions]
        return [self.rows[0], *(row for part in parts for row in (part[0], part[-1]))]

    def _of(self, condition: str) -> list[Row]:
        return [row for row in self.rows if row.condition == condition]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "images": self.num_images,
            "rows": [asdict(row) for row in self.rows],
            "beside": {name: [asdict(row) for row in rows] for name, rows in self.beside.items()},
        }


def make_card(
    predictors: Mapping[str, Predictor],
    labels_N: NDArray[np.int64],
    classes: ClassSet,
    load_pixels: LoadPixels,
    track: Track = no_progress,
) -> Card:
    """Predicts a sample of images under all conditions.

    Args:
        predictors: Models by name; the first one is the one that is evaluated. All have the same
            classes and preprocessing.
        labels_N: Class indices of all images.
        classes: Classes in the order of their indices.
        load_pixels: Loads images at some positions.
        track: Shows progress.
    """
    sample = _sample(labels_N)
    pixels = load_pixels(sample)
    views: list[tuple[Condition | None, int]] = [(None, 0)]
    views += [(item, number) for item in CONDITIONS for number in range(len(item.levels))]
    rows: dict[str, list[Row]] = {name: [] for name in predictors}
    for index in track(range(len(views)), "conditions", len(views)):
        condition, number = views[index]
        changed = pixels if condition is None else _changed(pixels, condition, number)
        for name, predictor in predictors.items():
            probs_NK = _predict(predictor, changed)
            rows[name].append(_row(condition, number, probs_NK, labels_N[sample], classes))
    first, *others = (tuple(of_model) for of_model in rows.values())
    return Card(first, dict(zip(list(rows)[1:], others, strict=True)))


def table(card: Card) -> pd.DataFrame:
    """Returns one row per condition and level, with the accuracy of other models beside it."""
    frame = pd.DataFrame(
        {
            "condition": [row.condition for row in card.rows],
            "severity": [row.severity for row in card.rows],
            "level": [row.text for row in card.rows],
            **_columns(card.rows),
        }
    )
    for name, rows in card.beside.items():
        for column, values in _columns(rows).items():
            frame[f"{column} of {name}"] = values
    return frame


def _columns(rows: Sequence[Row]) -> dict[str, list[float]]:
    columns = {"accuracy": [row.accuracy.value for row in rows]}
    for name in ("drone_recall", "birds_right"):
        parts = [getattr(row, name) for row in rows]
        if None not in parts:
            columns[name] = [part.value for part in parts]
    return columns


def _sample(labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the positions of a fixed sample, in which each class has its share, ascending."""
    rng = np.random.default_rng(0)
    order_N = rng.permutation(len(labels_N))
    # Sorted by how far through its class an image is, so a prefix holds the same share of each.
    ranks_N = pd.Series(np.ones(len(order_N))).groupby(labels_N[order_N]).cumsum().to_numpy()
    shares_N = ranks_N / np.bincount(labels_N)[labels_N[order_N]]
    return np.sort(order_N[np.argsort(shares_N, kind="stable")][:_MAX_IMAGES])


def _changed(pixels: NDArray[np.uint8], condition: Condition, number: int) -> NDArray[np.uint8]:
    level = condition.levels[number]
    # Each image has noise of its own, the same in every evaluation.
    return np.stack(
        [
            condition.apply(image, level, np.random.default_rng((number, position)))
            for position, image in enumerate(pixels)
        ]
    )


def _predict(predictor: Predictor, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    sides = np.full(len(pixels), pixels.shape[1])
    return predict_in_batches(predictor.predict_pixels, sides, lambda chosen: pixels[chosen])


def _row(
    condition: Condition | None,
    number: int,
    probs_NK: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    classes: ClassSet,
) -> Row:
    recall, birds = _bird_or_drone(probs_NK, labels_N, classes)
    accuracy = proportion(decide(probs_NK, classes) == labels_N)
    if condition is None:
        return Row("", 0, None, _UNCHANGED, accuracy, recall, birds)
    level = condition.levels[number]
    text = condition.text.format(level)
    return Row(condition.name, number + 1, level, text, accuracy, recall, birds)


def _bird_or_drone(
    probs_NK: NDArray[np.float32], labels_N: NDArray[np.int64], classes: ClassSet
) -> tuple[Proportion | None, Proportion | None]:
    called_N = called_drones(probs_NK, classes)
    roles_N = np.array(classes.roles)[labels_N]
    is_drone_N, is_bird_N = roles_N == "drone", roles_N == "bird"
    if called_N is None or not is_drone_N.any() or not is_bird_N.any():
        return None, None
    return proportion(called_N[is_drone_N]), proportion(~called_N[is_bird_N])
