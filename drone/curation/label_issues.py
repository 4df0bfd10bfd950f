"""Label issues: labels that are probably wrong, and the test accuracy that they allow.

A classifier on frozen features predicts each image out of fold, trained on neither the image nor
its near duplicates. Labels that it confidently contradicts are suspects (Northcutt, Jiang and
Chuang 2021, "Confident Learning", as the library cleanlab implements it). Axes: N images, K
classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from cleanlab.count import compute_confident_joint, estimate_joint
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray

from drone.curation.frozen_features import FrozenFeatures

_NUM_RESAMPLES = 500


@dataclass(frozen=True)
class Ceiling:
    """Accuracy that a model without errors would get on the test split as it is labelled."""

    accuracy: float
    low: float
    high: float
    """Bounds of the 95 % interval over resampled images and test splits."""


@dataclass(frozen=True)
class LabelIssues:
    """Suspect labels, and how many labels are probably wrong."""

    suspects: pd.DataFrame
    """One row per suspect, worst first: `position`, `given` and `suggested` (class names),
    `confidence` (probability of the suggested class), `given_probability` (of the given one) and
    `quality` (label quality, 0 worst to 1)."""

    joint_KK: NDArray[np.float64]
    """Estimated share of all images by given class (row) and true class (column); sums to 1."""

    accuracy: float
    """Share of labels that equal the out-of-fold prediction."""

    ceiling: Ceiling


def find_in_dataset(
    features: FrozenFeatures, probs_NK: NDArray[np.float64]
) -> tuple[LabelIssues, pd.DataFrame]:
    """Finds label issues among all kept images of a data set.

    Args:
        features: The images, with their labels and groups.
        probs_NK: Result of `probe.out_of_fold` for them.

    Returns:
        The label issues, and the suspects with the columns `md5`, `path` and `split` in front.
    """
    rows = features.rows
    num_test = int((rows["split"] == "test").sum())
    issues = find(probs_NK, features.labels_N, features.groups_N, features.classes, num_test)
    files = rows.loc[issues.suspects["position"], ["md5", "path", "split"]].reset_index(drop=True)
    return issues, pd.concat([files, issues.suspects.drop(columns="position")], axis=1)


def find(
    probs_NK: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    classes: Sequence[str],
    num_test: int,
    seed: int = 0,
) -> LabelIssues:
    """Ranks the labels by quality and estimates how many are wrong.

    Confident contradictions are counted, with each class's mean confidence as its threshold, and
    scaled to the sizes of the classes. A confidently wrong model also counts as wrong labels, so
    the ceiling is an underestimate rather than an overestimate.

    Args:
        probs_NK: Probabilities from models that were not trained on the image; see
            `probe.out_of_fold`.
        labels_N: Given class indices.
        groups_N: Group of each image; near duplicates share one and are resampled together.
        classes: Class names in the order of their indices.
        num_test: Number of images in the test split, for the ceiling's interval.
        seed: Seed of the resampling.
    """
    joint_KK = joint(labels_N, probs_NK)
    return LabelIssues(
        suspects=_suspects(probs_NK, labels_N, classes),
        joint_KK=joint_KK,
        accuracy=float((probs_NK.argmax(axis=1) == labels_N).mean()),
        ceiling=_ceiling(joint_KK, probs_NK, labels_N, groups_N, num_test, seed),
    )


def _suspects(
    probs_NK: NDArray[np.float64], labels_N: NDArray[np.int64], classes: Sequence[str]
) -> pd.DataFrame:
    """Returns the table of `LabelIssues.suspects`."""
    # In one process: 3 ms for 800 images, where cleanlab's own pool takes 48.
    order = find_label_issues(
        labels_N, probs_NK, return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    quality_N = get_label_quality_scores(labels_N, probs_NK, method="normalized_margin")
    names = np.array(classes)
    predicted_N = probs_NK.argmax(axis=1)
    suspects = pd.DataFrame(
        {
            "position": order,
            "given": names[labels_N[order]],
            "suggested": names[predicted_N[order]],
            "confidence": probs_NK[order, predicted_N[order]],
            "given_probability": probs_NK[order, labels_N[order]],
            "quality": quality_N[order],
        }
    )
    # A label can be doubtful and yet the most probable one; then there is nothing to suggest.
    return suspects[suspects["given"] != suspects["suggested"]].reset_index(drop=True)


def joint(labels_N: NDArray[np.int64], probs_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the table of `LabelIssues.joint_KK`."""
    counts = compute_confident_joint(labels_N, probs_NK)
    joint_KK: NDArray[np.float64] = estimate_joint(labels_N, probs_NK, confident_joint=counts)
    return joint_KK


def _ceiling(
    joint_KK: NDArray[np.float64],
    probs_NK: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    num_test: int,
    seed: int,
) -> Ceiling:
    rng = np.random.default_rng(seed)
    group_numbers_N = pd.factorize(np.asarray(groups_N))[0]
    members = pd.Series(np.arange(len(labels_N))).groupby(group_numbers_N).apply(np.array)
    values = []
    for _ in range(_NUM_RESAMPLES):
        # By group: near duplicates are not independent evidence.
        drawn_groups = rng.integers(len(members), size=len(members))
        drawn = np.concatenate(members.to_numpy()[drawn_groups])
        # cleanlab needs an image of every class.
        if len(np.unique(labels_N[drawn])) < probs_NK.shape[1]:
            continue
        right = float(np.trace(joint(labels_N[drawn], probs_NK[drawn])))
        # Binomial, since a test split of this size scatters even if the share is known.
        values.append(rng.binomial(num_test, min(right, 1.0)) / max(num_test, 1))
    low, high = np.quantile(values, [0.025, 0.975]) if values else (0.0, 1.0)
    return Ceiling(float(np.trace(joint_KK)), float(low), float(high))


def true_class_table(issues: LabelIssues, classes: Sequence[str]) -> pd.DataFrame:
    """Returns the estimated share of each given class (row) whose true class is each column."""
    row_sums = issues.joint_KK.sum(axis=1, keepdims=True)
    shares = issues.joint_KK / np.maximum(row_sums, 1e-12)
    return pd.DataFrame(shares, index=list(classes), columns=list(classes))
