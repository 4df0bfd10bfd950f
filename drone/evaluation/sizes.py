"""Whether taking pictures at their own sizes pays, against squashing all of them to 224 px.

Both ways answer about the same pictures, so they are compared picture by picture. Axes: N pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from drone.evaluation.gate import bootstrap
from drone.evaluation.metrics import Answers, share

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Way:
    """How pictures were answered."""

    name: str
    """For a person, such as "squashed to 224 px"."""

    answers: Answers
    ms_by_side: Mapping[int, float]
    """Milliseconds of the network for one picture of a bin, by the bin's side."""


@dataclass(frozen=True)
class Comparison:
    """Own sizes against another way, on the same pictures."""

    against: str
    accuracy: float
    baseline: float
    low: float
    high: float
    """Ends of the 95 % interval of the difference in macro F1 (bootstrap)."""

    gained: int
    """Pictures that only own sizes have right."""

    lost: int
    """Pictures that only the other way has right."""

    p_value: float
    """That they would differ so much by chance: McNemar's exact test (1947), two-sided."""

    times_slower: float
    """Milliseconds of the network over all pictures, as a multiple of the other way's."""

    sentence: str
    """What came of it, for a person."""


def by_size(sides_N: NDArray[np.int64], ways: Sequence[Way]) -> pd.DataFrame:
    """Accuracy and time by bin.

    Args:
        sides_N: bin of each picture.
        ways: own sizes first.

    Returns:
        A row for each bin that has pictures: `side_px`, `pictures`, and for each way
        `accuracy`, `low`, `high` (95 %, Wilson) and `ms`, the other ways' with their number.
    """
    rows = []
    for side in np.unique(sides_N):
        own = sides_N == side
        row: dict[str, float] = {"side_px": int(side), "pictures": int(own.sum())}
        for number, way in enumerate(ways):
            suffix = f"_{number}" if number else ""
            found = share(_right(way.answers)[own])
            row |= {
                f"accuracy{suffix}": found.value,
                f"low{suffix}": found.low,
                f"high{suffix}": found.high,
                f"ms{suffix}": way.ms_by_side.get(int(side), float("nan")),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def compare(sides_N: NDArray[np.int64], own: Way, other: Way) -> Comparison:
    """Whether own sizes are better than another way."""
    right_N, other_N = _right(own.answers), _right(other.answers)
    gained, lost = int((right_N & ~other_N).sum()), int((~right_N & other_N).sum())
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    names = np.array(own.answers.classes)
    _, low, high = bootstrap(
        names[own.answers.labels_N],
        names[own.answers.predicted_N],
        names[other.answers.predicted_N],
    )
    slower = _mean_ms(sides_N, own) / _mean_ms(sides_N, other)
    accuracy, baseline = float(right_N.mean()), float(other_N.mean())
    if p_value >= _SIGNIFICANT:
        verdict = f"No difference that {len(right_N)} pictures could show"
    else:
        verdict = "The resizing network paid" if gained > lost else "The resizing network cost"
    sentence = (
        f"{verdict}: accuracy {accuracy:.3f} at the pictures' own sizes, {baseline:.3f} "
        f"{other.name} ({gained} newly right, {lost} newly wrong, p = {p_value:.2f}; macro F1 "
        f"{low:+.3f} to {high:+.3f}, 95 %), at {slower:.1f} times the network's time."
    )
    return Comparison(
        other.name, accuracy, baseline, low, high, gained, lost, p_value, slower, sentence
    )


def _right(answers: Answers) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = answers.predicted_N == answers.labels_N
    return right


def _mean_ms(sides_N: NDArray[np.int64], way: Way) -> float:
    return float(np.mean([way.ms_by_side[int(side)] for side in sides_N]))
