"""Assigns images to train, validation and test; no group of near duplicates is in two of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.data.dataset import SPLITS
from drone.data.grouped_partition import partition
from drone.data.prepare.listing import split_of_root
from drone.data.prepare.near_duplicates import near_groups
from drone.data.prepare.verdicts import BRIDGE, NEAR, gets_split
from drone.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Shares and seed of train, validation and test."""

    train: float = 0.70
    """Share of each class that the model is trained on."""

    validation: float = 0.15
    """Share of each class that selects the best epoch and configuration."""

    test: float = 0.15
    """Share of each class that only `evaluate` reads."""

    seed: int = 0
    """Seed of the split; another one splits the same images differently."""

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"The shares of train, validation and test are {shares}; "
                f"each must be above 0 and their sum 1."
            )

    @property
    def shares(self) -> NDArray[np.float64]:
        """The shares in the order of SPLITS."""
        return np.array([self.train, self.validation, self.test])


def assign_splits(
    frame: pd.DataFrame,
    classes: Sequence[str],
    settings: SplitSettings,
    threshold: int,
    previous: Mapping[str, str] | None = None,
    *,
    keep_split: bool = False,
) -> pd.DataFrame:
    """Returns the frame with a column `split`, "" for files that get none.

    Groups stay whole; every class and every kind of negatives is spread by the shares. What an
    earlier data set assigned stays there, and groups with such an image follow it. A new file whose
    near duplicates are in two splits would leak from one to the other: it is left out (reason
    "joins-splits").

    Args:
        frame: Verdicts of `clean.assign_verdicts`.
        classes: Class names in order.
        settings: Shares and seed.
        threshold: Maximum distance of near duplicates in bits, the same as for the verdicts.
        previous: Splits by content in an earlier version of the data set.
        keep_split: Whether images of folders that are named after a split stay in it, even if
            that puts a group into several splits.

    Raises:
        DataError: A class has too few groups for three splits, or the folders leave it without an
            image in one of them.
    """
    frame = frame.copy()
    frame["split"] = ""
    in_split = frame[gets_split(frame)]
    previous = previous or {}
    earlier = in_split["content"].map(lambda content: previous.get(content, ""))
    if keep_split:
        given = in_split["root"].map(split_of_root)
        earlier = given.where(given != "", earlier)
    if _leave_out_bridges(frame, in_split, earlier):
        # Without the bridges, the groups that they joined fall apart.
        frame["group"] = near_groups(frame, threshold)
    # After bridges are left out, since a class may have too few groups without them.
    _check_sizes(frame, classes, threshold)
    in_split = frame[gets_split(frame)]
    earlier = earlier[in_split.index]
    splits = _partition(in_split, earlier, classes, settings)
    frame.loc[in_split.index, "split"] = earlier.where(earlier != "", splits)
    if keep_split:
        _check_kept_splits(frame[frame["kept"]], classes)
    return frame


def _partition(
    in_split: pd.DataFrame,
    earlier: "pd.Series[str]",
    classes: Sequence[str],
    settings: SplitSettings,
) -> "pd.Series[str]":
    """Returns the split of each image; groups of which one has a split follow it.

    Negatives come after the images of classes, so that adding them moves no image of a class.
    """
    is_negative = in_split["kind"] != ""
    kinds = sorted(set(in_split.loc[is_negative, "kind"]))
    splits = _of_group(in_split["group"], earlier)
    # Balanced by the folders' classes: relabelling an image moves no other to another split.
    for rows, column, names in (
        (~is_negative, "given_class", classes),
        (is_negative, "kind", kinds),
    ):
        images = in_split[rows]
        by_folder = images.assign(class_name=images[column])
        assigned = splits[rows]
        splits[rows] = partition(by_folder, assigned, names, SPLITS, settings.shares, settings.seed)
        splits = _of_group(in_split["group"], splits)
    return splits


def _of_group(group: "pd.Series[str]", splits: "pd.Series[str]") -> "pd.Series[str]":
    """Returns for each image the first split that an image of its group has, or ""."""
    of_group = splits[splits != ""].groupby(group).first().to_dict()
    return group.map(lambda name: of_group.get(name, ""))


def splits_table(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Returns the number of kept images by split and class, with a column "total"."""
    kept = frame[frame["kept"]]
    table = pd.crosstab(kept["split"], kept["class_name"])
    table = table.reindex(index=list(SPLITS), columns=list(classes), fill_value=0)
    table.columns.name = None
    table["total"] = table.sum(axis=1)
    return table


def _check_kept_splits(kept: pd.DataFrame, classes: Sequence[str]) -> None:
    """Fails if the folders leave a split without an image of a class."""
    if not kept["root"].map(split_of_root).any():
        raise ConfigError(
            f"--keep-split keeps the split of images in folders named {', '.join(SPLITS)} (or "
            f"val), but none of the raw folders is named so: "
            f"{', '.join(sorted(set(kept['root'])))}."
        )
    for split in SPLITS:
        present = set(kept.loc[kept["split"] == split, "class_name"])
        if missing := [name for name in classes if name not in present]:
            raise DataError(
                f"The folders put no image of {', '.join(missing)} into the split {split}. Add "
                f"some there, or leave out --keep-split to split all images anew."
            )


def _leave_out_bridges(
    frame: pd.DataFrame, in_split: pd.DataFrame, earlier: "pd.Series[str]"
) -> bool:
    """Leaves out new files whose group is in several splits; returns whether there are any."""
    assigned = earlier != ""
    splits_of_group = earlier[assigned].groupby(in_split["group"][assigned]).nunique()
    straddling = splits_of_group.index[splits_of_group > 1]
    # Only new files: what was assigned before stays in its split.
    bridges = in_split.index[in_split["group"].isin(straddling) & ~assigned]
    frame.loc[bridges, "kept"] = False
    frame.loc[bridges, "reason"] = BRIDGE
    return len(bridges) > 0


def _check_sizes(frame: pd.DataFrame, classes: Sequence[str], threshold: int) -> None:
    """Fails if a class cannot be in every split; names each such class, and why it is too small."""
    kept = frame[frame["kept"]]
    groups = kept.groupby("class_name")["group"].nunique().reindex(list(classes), fill_value=0)
    too_few = groups[groups < len(SPLITS)]
    if too_few.empty:
        return
    described = [_describe_class(frame, name, int(count)) for name, count in too_few.items()]
    images = kept[kept["class_name"].isin(too_few.index)]
    near = len(images) > too_few.sum() or (frame["reason"] == NEAR).any()
    advice = f", or lower --near-duplicate-threshold, which is {threshold}, if these do differ"
    raise DataError(
        f"Train, validation and test each need an image of every class, and near duplicates share "
        f"a split: {'; '.join(described)}. Add images that differ from these"
        f"{advice if near and threshold else ''}."
    )


def _describe_class(frame: pd.DataFrame, name: str, num_groups: int) -> str:
    """Returns how many images a class has, and what was left out of it."""
    files = frame[frame["class_name"] == name]
    left_out = files.loc[~files["kept"], "reason"].value_counts()
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    num_kept = int(files["kept"].sum())
    alike = f" among {num_kept}, the others being near duplicates,"
    return (
        f"{name} has {num_groups} different image{'' if num_groups == 1 else 's'}"
        f"{alike if num_kept > num_groups else ''} and "
        f"needs {len(SPLITS)}" + (f" (left out: {reasons})" if reasons else "")
    )
