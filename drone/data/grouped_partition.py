"""Partitions images so that groups stay whole and classes are spread evenly.

Both the split of a data set and other partitions of its training images come from here.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def assign_folds(
    images: pd.DataFrame, classes: Sequence[str], num_folds: int, seed: int
) -> "pd.Series[str]":
    """Returns the fold of each image, "0" to "num_folds - 1", stratified and group-aware.

    Args:
        images: Rows of a manifest, with `group` and `class_name`.
        classes: Class names in order.
        num_folds: Number of folds.
        seed: Another seed gives another partition.
    """
    names = [str(number) for number in range(num_folds)]
    unassigned = pd.Series("", index=images.index)
    shares = np.full(num_folds, 1 / num_folds)
    return partition(images, unassigned, classes, names, shares, seed, ties_to_emptiest=True)


def partition(
    images: pd.DataFrame,
    assigned: "pd.Series[str]",
    classes: Sequence[str],
    parts: Sequence[str],
    shares: NDArray[np.float64],
    seed: int,
    *,
    ties_to_emptiest: bool = False,
) -> "pd.Series[str]":
    """Returns the part of each image.

    Greedy, as in scikit-learn's StratifiedGroupKFold: groups go, largest first, to the part that
    is furthest below its share of their classes. Groups of equal size are ordered by the seed and
    their name, so files that are added later do not reorder the others.

    Args:
        images: Rows of a manifest, with `group` and `class_name`.
        assigned: Part of each image that is assigned already, else "". The rest of its group
            follows it.
        classes: Class names in order.
        parts: Names of the parts, S of them.
        shares: Share of each part, (S,); they sum to 1.
        seed: Another seed gives another partition.
        ties_to_emptiest: Whether a group that several parts need alike goes to the one furthest
            below its share of all images, not to the first. With fewer groups of a class than
            parts, the last parts would get nothing of any class.
    """
    counts = pd.crosstab(images["group"], images["class_name"])
    counts = counts.reindex(columns=list(classes), fill_value=0)
    target_SC = np.outer(shares, counts.sum(axis=0).to_numpy())
    missing_SC = target_SC.copy()
    part_of: dict[str, str] = {}
    groups = pd.DataFrame({"group": images["group"], "part": assigned})
    for group, part in groups[groups["part"] != ""].drop_duplicates("group").to_numpy():
        part_of[group] = part
        missing_SC[parts.index(part)] -= counts.loc[group].to_numpy()
    counts_of = {
        str(group): row for group, row in zip(counts.index, counts.to_numpy(), strict=True)
    }
    unassigned = [group for group in counts_of if group not in part_of]
    # Largest first, while every part has room; the small ones even out what is left.
    unassigned.sort(key=lambda group: (-counts_of[group].sum(), _random_order(seed, group)))
    for group in unassigned:
        # How far each part is below its share of the classes in this group.
        need_S = (missing_SC / np.maximum(target_SC, 1e-9)) @ counts_of[group]
        if ties_to_emptiest:
            need_S = np.where(np.isclose(need_S, need_S.max()), missing_SC.sum(axis=1), -np.inf)
        neediest = int(np.argmax(need_S))
        part_of[group] = parts[neediest]
        missing_SC[neediest] -= counts_of[group]
    return images["group"].map(part_of)


def _random_order(seed: int, group: str) -> bytes:
    # Not hash(): Python salts it anew in every process.
    return hashlib.sha256(f"{seed} {group}".encode()).digest()
