"""The operating point: how many drones raise an alarm, and how many birds and negatives do.

An image raises an alarm if the probability of a drone of any kind reaches a threshold and the
answer is not "none of these"; see `drone.serving.predictor.alarm_scores`. Axes: N images.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.evaluation.metrics import Proportion, proportion

RECALLS = (0.9, 0.95, 0.99)
"""Shares of the drones that a report shows the false alarms of."""

_SCALE = 10_000
"""Steps of thresholds between 0 and 1. They are rounded down, since the last digits of a
probability differ between one image and a batch, and between a server and a browser."""

_MAX_CURVE = 200
"""Thresholds of the curve."""

_RARE = 1.0
"""False alarms per 1,000 that an operator would want to be told of."""


@dataclass(frozen=True)
class Alarms:
    """Shares of the images that raise an alarm at one threshold."""

    threshold: float
    """Lowest probability of a drone that raises an alarm."""

    drones: Proportion
    """Share of the drones: the recall."""

    birds: Proportion
    """Share of the birds; of no birds it is NaN."""

    others: Proportion
    """Share of the images of other classes; of no such images it is NaN."""

    negatives: Proportion
    """Share of the negatives; of no negatives it is NaN."""

    @property
    def false_alarms(self) -> dict[str, Proportion]:
        """False alarms per 1,000 birds, others and negatives; without those of no images."""
        parts = {"birds": self.birds, "others": self.others, "negatives": self.negatives}
        return {name: per_1000(part) for name, part in parts.items() if part.support}

    def as_dict(self) -> dict[str, Any]:
        """Returns JSON values, with false alarms per 1,000."""
        by_images = {
            f"false_alarms_per_1000_{name}": asdict(part)
            for name, part in self.false_alarms.items()
        }
        return {"threshold": self.threshold, "recall": asdict(self.drones), **by_images}


def per_1000(part: Proportion) -> Proportion:
    """Returns a proportion with its interval in images per 1,000."""
    return Proportion(1000 * part.value, 1000 * part.low, 1000 * part.high, part.support)


@dataclass(frozen=True)
class AlarmScores:
    """Alarm scores of images, by what they show; NaN raises no alarm at any threshold."""

    drones: NDArray[np.float64]
    birds: NDArray[np.float64]
    others: NDArray[np.float64]
    """Of images of classes that are neither birds nor drones."""

    negatives: NDArray[np.float64]

    @staticmethod
    def split(
        scores_N: NDArray[np.float64],
        roles_N: NDArray[np.str_],
        negatives_M: NDArray[np.float64] | None = None,
    ) -> "AlarmScores":
        """Returns the scores of images by their roles, and of negatives if there are some."""
        negatives = np.zeros(0) if negatives_M is None else negatives_M
        drones, birds, others = (scores_N[roles_N == role] for role in ("drone", "bird", "other"))
        return AlarmScores(drones, birds, others, negatives)

    def alarms(self, threshold: float) -> Alarms:
        """Returns what raises an alarm at a threshold."""
        parts = (self.drones, self.birds, self.others, self.negatives)
        return Alarms(threshold, *(proportion(scores >= threshold) for scores in parts))

    @property
    def reachable(self) -> float:
        """Recall without a threshold: share of the drones that are not "none of these"."""
        return float(np.isfinite(self.drones).mean())


def choose_threshold(drones_N: NDArray[np.float64], recall: float) -> float | None:
    """Returns the highest threshold at which a share of the drones raises an alarm.

    Args:
        drones_N: Alarm scores of at least one drone.
        recall: The share, above 0 and at most 1.

    Returns:
        The threshold, rounded down to four digits; None if too few drones can raise an alarm.
    """
    # The small term is for rounding: 0.95 * 20 must not become 20.
    num_needed = math.ceil(recall * len(drones_N) - 1e-9)
    descending = np.sort(drones_N[np.isfinite(drones_N)])[::-1]
    if num_needed > len(descending):
        return None
    return math.floor(float(descending[num_needed - 1]) * _SCALE) / _SCALE


@dataclass(frozen=True)
class OperatingPoint:
    """What thresholds do to an evaluation's images."""

    curve: tuple[Alarms, ...]
    """Of thresholds that ascend."""

    at: Mapping[float, Alarms | None]
    """By the recall that is demanded; None where too few drones can raise an alarm."""

    reachable: float
    """Recall without a threshold: share of the drones that are not "none of these"."""

    @property
    def num_birds(self) -> int:
        """Number of birds."""
        return self.curve[0].birds.support

    @property
    def num_negatives(self) -> int:
        """Number of negatives."""
        return self.curve[0].negatives.support

    @property
    def few_birds(self) -> str:
        """How few false alarms so many birds can show, in a sentence; empty if they are many."""
        smallest = smallest_rate(self.num_birds)
        if self.num_birds == 0:
            return "There are no birds, so nothing is known of false alarms on birds."
        if smallest <= _RARE:
            return ""
        return (
            f"{self.num_birds} birds cannot show fewer than {smallest:.0f} false alarms per 1,000: "
            f"even if none of them raises one, the true number may be as high (rule of three)."
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns all figures but the curve as JSON values, as metrics.json has them."""
        return {
            "reachable_recall": self.reachable,
            "at_recall": {
                f"{recall:g}": alarms.as_dict() if alarms else None
                for recall, alarms in self.at.items()
            },
        }


def smallest_rate(num_images: int) -> float:
    """Returns the upper bound of 95 % on a rate per 1,000 of which no case was seen.

    It is 3 / N, the rule of three (Hanley and Lippman-Hand 1983).
    """
    return 3000 / num_images if num_images else math.inf


def find_operating_point(scores: AlarmScores) -> OperatingPoint | None:
    """Returns what thresholds do; None if there are no drones or all of them are rejected."""
    finite = scores.drones[np.isfinite(scores.drones)]
    if not len(finite):
        return None
    steps = np.quantile(finite, np.linspace(0, 1, _MAX_CURVE), method="nearest")
    chosen = {recall: choose_threshold(scores.drones, recall) for recall in RECALLS}
    return OperatingPoint(
        curve=tuple(scores.alarms(float(threshold)) for threshold in np.unique(steps)),
        at={
            recall: None if threshold is None else scores.alarms(threshold)
            for recall, threshold in chosen.items()
        },
        reachable=scores.reachable,
    )


def judge(scores: AlarmScores, limit: float, recall: float) -> tuple[bool, str]:
    """Returns whether false alarms on birds are within a limit, and the figures.

    The measured number counts, not the upper end of its interval; but what so few birds cannot show
    does not pass.

    Args:
        scores: Of at least one drone and one bird.
        limit: Maximum per 1,000 birds, above 0.
        recall: Share of the drones that have to raise an alarm.
    """
    num_birds, needed = len(scores.birds), math.ceil(smallest_rate(1) / limit)
    if num_birds < needed:
        return False, (
            f"{num_birds} birds of the test split cannot show at most {limit:g} per 1,000 birds; "
            f"at least {needed} birds are needed (rule of three)"
        )
    threshold = choose_threshold(scores.drones, recall)
    if threshold is None:
        return False, (
            f"{scores.reachable:.1%} of the drones can raise an alarm, since the others are none "
            f"of these; at least {recall:.1%}"
        )
    alarms = scores.alarms(threshold)
    birds = per_1000(alarms.birds)
    return birds.value <= limit, (
        f"{birds.value:.1f} per 1,000 birds ({birds.low:.1f} to {birds.high:.1f}, 95 %) where "
        f"{alarms.drones.value:.1%} of the drones raise an alarm, from a probability of "
        f"{threshold:g}; at most {limit:g}"
    )


def table(point: OperatingPoint) -> pd.DataFrame:
    """Returns one row per threshold of the curve; false alarms are per 1,000."""
    rows = []
    for alarms in point.curve:
        row = {"threshold": alarms.threshold, **_columns("recall", alarms.drones)}
        for name, part in alarms.false_alarms.items():
            row |= _columns(f"per_1000_{name}", part)
        rows.append(row)
    return pd.DataFrame(rows)


def _columns(name: str, part: Proportion) -> dict[str, float]:
    return {name: part.value, f"{name}_low": part.low, f"{name}_high": part.high}
