"""Whether multi-resolution inference pays, compared with resizing all images to 224 px.

Both variants predict the same images, so they are compared image by image. Axes: N images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from drone.evaluation.gate import bootstrap
from drone.evaluation.metrics import Predictions, proportion

_SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class Variant:
    """One way to predict the images, with its predictions and latency."""

    name: str
    """Name in tables and sentences, such as "squashed to 224 px"."""

    predictions: Predictions

    latency_ms_by_side: Mapping[int, float]
    """Inference time for one image of a bin, by the bin's side in pixels."""


@dataclass(frozen=True)
class Comparison:
    """Multi-resolution inference against another variant, on the same images."""

    against: str
    """Name of the other variant."""

    accuracy: float
    """Accuracy of multi-resolution inference."""

    baseline: float
    """Accuracy of the other variant."""

    low: float
    high: float
    """Bounds of the 95 % interval of the difference in macro F1 (bootstrap)."""

    gained: int
    """Number of images that only multi-resolution inference has right."""

    lost: int
    """Number of images that only the other variant has right."""

    p_value: float
    """Probability of so large a difference by chance: McNemar's exact test (1947), two-sided."""

    slowdown: float
    """Inference time over all images as a multiple of the other variant's."""

    sentence: str
    """The result in a sentence."""


def by_size(sides_N: NDArray[np.int64], variants: Sequence[Variant]) -> pd.DataFrame:
    """Returns accuracy and latency by bin.

    Args:
        sides_N: Bin of each image, as its side in pixels.
        variants: Multi-resolution inference first.

    Returns:
        One row per bin that has images: `side_px`, `images`, and for each variant `accuracy`,
        `low`, `high` (95 %, Wilson) and `ms`; the names of the second variant's end in _1, and so
        on.
    """
    rows = []
    for side in np.unique(sides_N):
        in_bin = sides_N == side
        row: dict[str, float] = {"side_px": int(side), "images": int(in_bin.sum())}
        for number, variant in enumerate(variants):
            suffix = f"_{number}" if number else ""
            accuracy = proportion(_right(variant.predictions)[in_bin])
            row |= {
                f"accuracy{suffix}": accuracy.value,
                f"low{suffix}": accuracy.low,
                f"high{suffix}": accuracy.high,
                f"ms{suffix}": variant.latency_ms_by_side.get(int(side), float("nan")),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def compare(sides_N: NDArray[np.int64], mixed: Variant, other: Variant) -> Comparison:
    """Compares multi-resolution inference with another variant.

    Args:
        sides_N: Bin of each image, as its side in pixels.
        mixed: Multi-resolution inference.
        other: The variant to compare it with.
    """
    right_N, other_right_N = _right(mixed.predictions), _right(other.predictions)
    gained = int((right_N & ~other_right_N).sum())
    lost = int((~right_N & other_right_N).sum())
    # Two-sided, since the resizer may be worse as well as better.
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    names = np.array(mixed.predictions.classes)
    _, low, high = bootstrap(
        names[mixed.predictions.labels_N],
        names[mixed.predictions.predicted_N],
        names[other.predictions.predicted_N],
    )
    # Weighted by how often each size occurs: a slow bin of few images costs little.
    slowdown = _mean_latency_ms(sides_N, mixed) / _mean_latency_ms(sides_N, other)
    accuracy, baseline = float(right_N.mean()), float(other_right_N.mean())
    # Accuracy decides, since McNemar's test counts images; macro F1 is shown beside it.
    if p_value >= _SIGNIFICANCE_LEVEL:
        verdict = f"No significant difference on {len(right_N)} images"
    else:
        verdict = "The resizer pays" if gained > lost else "The resizer costs accuracy"
    sentence = (
        f"{verdict}: accuracy {accuracy:.3f} at the images' own sizes, {baseline:.3f} "
        f"{other.name} ({gained} newly right, {lost} newly wrong, p = {p_value:.2f}; macro F1 "
        f"{low:+.3f} to {high:+.3f}, 95 %), at {slowdown:.1f} times the inference time."
    )
    return Comparison(
        other.name, accuracy, baseline, low, high, gained, lost, p_value, slowdown, sentence
    )


def _right(predictions: Predictions) -> NDArray[np.bool_]:
    right_N: NDArray[np.bool_] = predictions.predicted_N == predictions.labels_N
    return right_N


def _mean_latency_ms(sides_N: NDArray[np.int64], variant: Variant) -> float:
    return float(np.mean([variant.latency_ms_by_side[int(side)] for side in sides_N]))
