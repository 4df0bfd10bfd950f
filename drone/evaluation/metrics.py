"""Metrics of a model's predictions. Axes: N images, K classes."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from drone.labels import ClassSet
from drone.serving.roles import confidences, decide, role_probabilities

_ECE_BINS = 15
_NORMAL_QUANTILE = 1.959963984540054
"""Of 97.5 %."""


ALARM_COLUMN = "alarm_score"
"""Column of predictions.csv; empty for an image that raises no alarm at any threshold."""


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for labelled images."""

    paths: tuple[str, ...]
    labels_N: NDArray[np.int64]
    """True class indices."""

    probs_NK: NDArray[np.float32]
    classes: ClassSet
    """Classes in the order of their indices."""

    known_N: NDArray[np.float32]
    """Known scores."""

    alarm_N: NDArray[np.float64] | None = None
    """Alarm scores; None if the classes do not tell drones."""

    @property
    def roles_N(self) -> NDArray[np.str_]:
        """Roles of the true classes."""
        return np.array(self.classes.roles)[self.labels_N]

    @functools.cached_property
    def predicted_N(self) -> NDArray[np.int64]:
        """Indices of the predicted classes; see `roles.decide`."""
        return decide(self.probs_NK, self.classes)

    @functools.cached_property
    def confidence_N(self) -> NDArray[np.float32]:
        """Probabilities of the predicted classes."""
        return confidences(self.probs_NK, self.predicted_N)

    def table(self) -> pd.DataFrame:
        """Returns one row per image: path, true and predicted class, and all probabilities."""
        names = np.array(self.classes)
        frame = pd.DataFrame(
            {
                "path": self.paths,
                "true": names[self.labels_N],
                "predicted": names[self.predicted_N],
                "right": self.labels_N == self.predicted_N,
                "confidence": self.confidence_N,
                "known": self.known_N,
            }
        )
        if self.alarm_N is not None:
            frame[ALARM_COLUMN] = self.alarm_N
        columns = [f"p {name}" for name in self.classes]
        return pd.concat([frame, pd.DataFrame(self.probs_NK, columns=columns)], axis=1)


@dataclass(frozen=True)
class Proportion:
    """A proportion of images with its 95 % interval of Wilson (1927)."""

    value: float
    low: float
    high: float
    support: int
    """Number of images that it is a proportion of."""


def proportion(right_N: NDArray[np.bool_]) -> Proportion:
    """Returns the proportion of True; of no images it is NaN, with the interval 0 to 1."""
    if not len(right_N):
        return Proportion(float("nan"), 0.0, 1.0, 0)
    value = float(right_N.mean())
    return Proportion(value, *wilson(value, len(right_N)), len(right_N))


def wilson(value: float, support: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion of so many images (Wilson 1927).

    The normal interval leaves 0 to 1 for few images and has no width at 100 %.
    """
    square = _NORMAL_QUANTILE**2
    centre = value + square / (2 * support)
    half = _NORMAL_QUANTILE * math.sqrt(value * (1 - value) / support + square / (4 * support**2))
    # Rounding may leave 0 to 1 by the last bit.
    low, high = ((centre + side) / (1 + square / support) for side in (-half, half))
    return max(low, 0.0), min(high, 1.0)


@dataclass(frozen=True)
class Scores:
    """Metrics of a set of predictions."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    """Bounds of the 95 % interval of Wilson (1927)."""

    macro_f1: float
    """Mean F1 of the classes that have images, each of which counts equally."""

    weighted_f1: float | None
    """The same, with each class counting by its weight in training; None if that was not given."""

    ece: float
    """Expected calibration error; see `calibration_error`."""

    bird_or_drone: float | None
    """Accuracy of telling birds from drones, each of any kind; None without images of both."""

    support: int
    """Number of images."""

    by_class: pd.DataFrame
    """One row per class with the columns precision, recall, f1 and support."""

    confusion_KK: NDArray[np.int64]
    """Confusion matrix: number of images by true class (row) and predicted class (column)."""

    def as_dict(self) -> dict[str, Any]:
        """Returns all metrics as JSON values, as metrics.json has them."""
        return {
            "accuracy": self.accuracy,
            "accuracy_95": [self.accuracy_low, self.accuracy_high],
            "macro_f1": self.macro_f1,
            "macro_f1_by_class_weights": self.weighted_f1,
            "ece": self.ece,
            "bird_or_drone_accuracy": self.bird_or_drone,
            "support": self.support,
            "by_class": {
                str(name): {key: float(value) for key, value in row.items()}
                for name, row in self.by_class.iterrows()
            },
            "confusion": self.confusion_KK.tolist(),
        }


def score(predictions: Predictions, weights_K: Sequence[float] = ()) -> Scores:
    """Computes the metrics of at least one prediction.

    Args:
        predictions: The predictions.
        weights_K: Weights of the classes that training was given; empty if it was given none.
    """
    labels, predicted = predictions.labels_N, predictions.predicted_N
    indices = list(range(len(predictions.classes)))
    right = labels == predicted
    accuracy = proportion(right)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=indices, zero_division=0
    )
    by_class = pd.DataFrame(
        {"precision": precision, "recall": recall, "f1": f1, "support": support},
        index=pd.Index(predictions.classes, name="class"),
    )
    # A class without test images has no F1; a zero for it would lower the mean for nothing.
    has_images = support > 0
    return Scores(
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        macro_f1=float(f1[has_images].mean()),
        weighted_f1=_weighted(f1, np.array(weights_K) * has_images) if weights_K else None,
        ece=calibration_error(predictions.confidence_N, right),
        bird_or_drone=_bird_or_drone(predictions),
        support=len(right),
        by_class=by_class,
        confusion_KK=confusion_matrix(labels, predicted, labels=indices),
    )


def _weighted(values_K: NDArray[np.float64], weights_K: NDArray[np.float64]) -> float:
    return float(np.average(values_K, weights=weights_K))


def calibration_error(confidence_N: NDArray[np.float32], right_N: NDArray[np.bool_]) -> float:
    """Returns the expected calibration error (Guo et al. 2017), 0 to 1.

    It is the mean distance between confidence and accuracy over 15 bins of equal width, weighted
    by their number of images.
    """
    # Clipped, since a confidence of 1 belongs to the last bin.
    bins = np.clip((confidence_N * _ECE_BINS).astype(int), 0, _ECE_BINS - 1)
    gaps = np.bincount(bins, weights=confidence_N - right_N, minlength=_ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence_N))


def _bird_or_drone(predictions: Predictions) -> float | None:
    called_N = called_drones(predictions.probs_NK, predictions.classes)
    if called_N is None:
        return None
    is_drone_N = predictions.roles_N == "drone"
    counted_N = is_drone_N | (predictions.roles_N == "bird")
    if not counted_N.any():
        return None
    return float((called_N == is_drone_N)[counted_N].mean())


def called_drones(probs_NK: NDArray[np.float32], classes: ClassSet) -> NDArray[np.bool_] | None:
    """Returns which images are rather drones than birds; None if the classes are not of both.

    The probabilities of all kinds of drones add up, so that an image can be called a drone although
    a bird is its most probable class.
    """
    roles = classes.present_roles
    if "bird" not in roles or "drone" not in roles:
        return None
    probs_NR = role_probabilities(probs_NK, classes)
    called_N: NDArray[np.bool_] = (
        probs_NR[:, roles.index("drone")] >= probs_NR[:, roles.index("bird")]
    )
    return called_N


def worst_mistakes(predictions: Predictions, class_index: int, max_count: int) -> list[int]:
    """Returns the positions of a class's misclassified images, most confident first."""
    wrong = np.flatnonzero(
        (predictions.labels_N == class_index) & (predictions.predicted_N != class_index)
    )
    by_confidence = np.argsort(-predictions.confidence_N[wrong], kind="stable")
    return [int(position) for position in wrong[by_confidence][:max_count]]


def worst_confusions(scores: Scores, max_count: int) -> list[tuple[str, str, int, float]]:
    """Returns the pairs of classes that are confused most often.

    Returns:
        True class, predicted class, number of images, and their share of the true class.
    """
    counts_KK, names = scores.confusion_KK.copy(), list(scores.by_class.index)
    np.fill_diagonal(counts_KK, 0)
    order = np.argsort(-counts_KK, axis=None, kind="stable")[:max_count]
    cells = [divmod(int(cell), len(names)) for cell in order]
    totals_K = scores.confusion_KK.sum(axis=1)
    return [
        (
            names[row],
            names[column],
            int(counts_KK[row, column]),
            counts_KK[row, column] / totals_K[row],
        )
        for row, column in cells
        if counts_KK[row, column]
    ]


def describe(scores: Scores) -> str:
    """Returns the result in two sentences."""
    # A class without images has recall 0 and would always be called the hardest.
    weakest = scores.by_class["recall"].where(scores.by_class["support"] > 0).idxmin()
    sentence = (
        f"{scores.accuracy:.1%} of {scores.support} images right (95 % interval "
        f"{scores.accuracy_low:.1%} to {scores.accuracy_high:.1%}), macro F1 {scores.macro_f1:.3f}"
    )
    if scores.weighted_f1 is not None:
        sentence += f" (all classes equally; by the class weights {scores.weighted_f1:.3f})"
    if scores.bird_or_drone is not None:
        sentence += f", bird against drone {scores.bird_or_drone:.1%}"
    recall = scores.by_class.loc[weakest, "recall"]
    return f"{sentence}. The hardest class is {weakest} (recall {recall:.1%})."
