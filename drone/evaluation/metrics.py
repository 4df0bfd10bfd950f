"""What a model's answers are worth. Axes: N pictures, K classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from drone.labels import BIRD

_ECE_BINS = 15


@dataclass(frozen=True)
class Answers:
    """What a model said of pictures whose class is known."""

    paths: tuple[str, ...]
    labels_N: NDArray[np.int64]
    probs_NK: NDArray[np.float32]
    classes: tuple[str, ...]

    @property
    def predicted_N(self) -> NDArray[np.int64]:
        """Index of the most probable class."""
        indices_N: NDArray[np.int64] = self.probs_NK.argmax(axis=1)
        return indices_N

    @property
    def confidence_N(self) -> NDArray[np.float32]:
        """Probability of the most probable class."""
        highest: NDArray[np.float32] = self.probs_NK.max(axis=1)
        return highest

    def table(self) -> pd.DataFrame:
        """A row for each picture: path, true and predicted class, and all probabilities."""
        names = np.array(self.classes)
        frame = pd.DataFrame(
            {
                "path": self.paths,
                "true": names[self.labels_N],
                "predicted": names[self.predicted_N],
                "right": self.labels_N == self.predicted_N,
                "confidence": self.confidence_N,
            }
        )
        for index, name in enumerate(self.classes):
            frame[f"p {name}"] = self.probs_NK[:, index]
        return frame


@dataclass(frozen=True)
class Share:
    """A share of pictures, with the ends of the 95 % interval of Wilson (1927)."""

    value: float
    low: float
    high: float
    support: int


def share(right_N: NDArray[np.bool_]) -> Share:
    """How many are right. Without a picture the interval is 0 to 1 and the value NaN."""
    if not len(right_N):
        return Share(float("nan"), 0.0, 1.0, 0)
    interval = binomtest(int(right_N.sum()), len(right_N)).proportion_ci(0.95, method="wilson")
    value = float(right_N.mean())
    return Share(value, float(interval.low), float(interval.high), len(right_N))


@dataclass(frozen=True)
class Scores:
    """Metrics of a set of answers."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    """Ends of the 95 % interval of Wilson (1927)."""

    macro_f1: float
    """Mean of the F1 of the classes that have pictures."""

    ece: float
    """Expected calibration error (Guo et al. 2017), 15 bins of equal width."""

    bird_or_drone: float | None
    """Accuracy of "bird or any drone"; None if the classes name no birds."""

    support: int
    """Pictures."""

    by_class: pd.DataFrame
    """Rows: classes; columns: precision, recall, f1, support."""

    confusion_KK: NDArray[np.int64]
    """Pictures by true class (row) and predicted class (column)."""

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "accuracy": self.accuracy,
            "accuracy_95": [self.accuracy_low, self.accuracy_high],
            "macro_f1": self.macro_f1,
            "ece": self.ece,
            "bird_or_drone_accuracy": self.bird_or_drone,
            "support": self.support,
            "by_class": {
                str(name): {key: float(value) for key, value in row.items()}
                for name, row in self.by_class.iterrows()
            },
            "confusion": self.confusion_KK.tolist(),
        }


def score(answers: Answers) -> Scores:
    """The metrics of one or more answers."""
    labels, predicted = answers.labels_N, answers.predicted_N
    indices = list(range(len(answers.classes)))
    right = labels == predicted
    accuracy = share(right)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=indices, zero_division=0
    )
    by_class = pd.DataFrame(
        {"precision": precision, "recall": recall, "f1": f1, "support": support},
        index=pd.Index(answers.classes, name="class"),
    )
    return Scores(
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        macro_f1=float(f1[support > 0].mean()),
        ece=calibration_error(answers.confidence_N, right),
        bird_or_drone=_bird_or_drone(answers),
        support=len(right),
        by_class=by_class,
        confusion_KK=confusion_matrix(labels, predicted, labels=indices),
    )


def calibration_error(confidence_N: NDArray[np.float32], right_N: NDArray[np.bool_]) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over 15 bins.

    Bins of equal width over 0..1, weighted by their number of pictures (Guo et al. 2017).
    """
    bins = np.clip((confidence_N * _ECE_BINS).astype(int), 0, _ECE_BINS - 1)
    gaps = np.bincount(bins, weights=confidence_N - right_N, minlength=_ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence_N))


def _bird_or_drone(answers: Answers) -> float | None:
    if BIRD not in answers.classes:
        return None
    bird = answers.classes.index(BIRD)
    # The probability of any drone is the sum over its kinds.
    said_bird = answers.probs_NK[:, bird] > 0.5
    return float((said_bird == (answers.labels_N == bird)).mean())


def worst_mistakes(answers: Answers, class_index: int, most: int) -> list[int]:
    """Positions of a class's misclassified pictures, the surest mistakes first."""
    wrong = np.flatnonzero((answers.labels_N == class_index) & (answers.predicted_N != class_index))
    surest_first = np.argsort(-answers.confidence_N[wrong], kind="stable")
    return [int(position) for position in wrong[surest_first][:most]]


def describe(scores: Scores) -> str:
    """The result in a sentence."""
    weakest = scores.by_class["recall"].where(scores.by_class["support"] > 0).idxmin()
    sentence = (
        f"{scores.accuracy:.1%} of {scores.support} pictures right (95 % interval "
        f"{scores.accuracy_low:.1%} to {scores.accuracy_high:.1%}), macro F1 {scores.macro_f1:.3f}"
    )
    if scores.bird_or_drone is not None:
        sentence += f", bird against drone {scores.bird_or_drone:.1%}"
    recall = scores.by_class.loc[weakest, "recall"]
    return f"{sentence}. The hardest class is {weakest} (recall {recall:.1%})."
