"""Which pictures train, which choose and which judge: no group in two of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.data.clean import BRIDGE, near_groups, shared_out
from drone.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How kept pictures are shared out."""

    train: float = 0.70
    """Share of each class that the model learns from."""

    validation: float = 0.15
    """Share that chooses the epoch and the configuration."""

    test: float = 0.15
    """Share that only `evaluate` reads."""

    seed: int = 0
    """Another seed gives another split of the same pictures."""

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"The shares of train, validation and test are {shares}; "
                f"each must be above 0 and their sum 1."
            )

    @property
    def shares(self) -> NDArray[np.float64]:
        """In the order of SPLITS."""
        return np.array([self.train, self.validation, self.test])


def assign(
    frame: pd.DataFrame,
    classes: Sequence[str],
    settings: SplitSettings,
    max_distance: int,
    previous: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """A copy of the frame with a `split` for each file of `clean.shared_out` ("" for the others).

    Groups go as a whole to the split that lacks most of their classes, the large ones first and
    equals in an order that the seed draws; so every class is shared out as asked, to within a
    group. Files that `previous` knows stay where they are, and new ones join their group there.
    A new file that joins groups of two splits would leak from one to the other: it is left out
    (reason "joins-splits").

    Args:
        frame: from `clean.judge`.
        classes: in order.
        settings: shares and seed.
        max_distance: of near duplicates, in bits, as `clean.judge` had it.
        previous: split of each md5 that an earlier data set assigned.

    Raises:
        DataError: a class has too few groups for three splits.
    """
    frame = frame.copy()
    frame["split"] = ""
    previous = previous or {}
    shared = frame[shared_out(frame)]
    old = shared["md5"].map(lambda md5: previous.get(md5, ""))
    if _leave_out_bridges(frame, shared, old):
        frame["group"] = near_groups(frame, max_distance)
    _check_sizes(frame[frame["kept"]], classes)
    shared = frame[shared_out(frame)]
    # By the folders' classes: what a person relabels moves no picture to another split.
    given = shared.assign(class_name=shared["given_class"])
    frame.loc[shared.index, "split"] = _place(
        given, old[shared.index], classes, SPLITS, settings.shares, settings.seed
    )
    return frame


def _leave_out_bridges(frame: pd.DataFrame, shared: pd.DataFrame, old: "pd.Series[str]") -> bool:
    known = old != ""
    splits_of_group = old[known].groupby(shared["group"][known]).nunique()
    torn = splits_of_group.index[splits_of_group > 1]
    bridges = shared.index[shared["group"].isin(torn) & ~known]
    frame.loc[bridges, "kept"] = False
    frame.loc[bridges, "reason"] = BRIDGE
    return len(bridges) > 0


def _check_sizes(kept: pd.DataFrame, classes: Sequence[str]) -> None:
    groups = kept.groupby("class_name")["group"].nunique().reindex(list(classes), fill_value=0)
    few = groups[groups < len(SPLITS)]
    if len(few):
        counts = ", ".join(f"{name}: {count}" for name, count in few.items())
        raise DataError(
            f"Too few different pictures for train, validation and test, which need one each "
            f"({counts}). Add pictures to these classes, or look at the reasons in the table of "
            f"steps (--dry-run) if files were left out."
        )


def folds(kept: pd.DataFrame, classes: Sequence[str], count: int, seed: int) -> "pd.Series[str]":
    """A fold, "0" to "count - 1", for each of these pictures; groups stay whole, classes even.

    Args:
        kept: rows of a manifest.
        classes: in order.
        count: of the folds.
        seed: another one shares the pictures out differently.
    """
    names = [str(number) for number in range(count)]
    unsettled = pd.Series("", index=kept.index)
    return _place(kept, unsettled, classes, names, np.full(count, 1 / count), seed)


def _place(
    kept: pd.DataFrame,
    old: "pd.Series[str]",
    classes: Sequence[str],
    names: Sequence[str],
    shares: NDArray[np.float64],
    seed: int,
) -> "pd.Series[str]":
    """The name of a part for each picture, where it is not settled by `old`."""
    counts = pd.crosstab(kept["group"], kept["class_name"])
    counts = counts.reindex(columns=list(classes), fill_value=0)
    wanted_SC = np.outer(shares, counts.sum(axis=0).to_numpy())
    lacking_SC = wanted_SC.copy()
    chosen: dict[str, str] = {}
    settled = pd.DataFrame({"group": kept["group"], "old": old})
    for group, name in settled[settled["old"] != ""].drop_duplicates("group").to_numpy():
        chosen[group] = name
        lacking_SC[names.index(name)] -= counts.loc[group].to_numpy()
    rows = {str(group): row for group, row in zip(counts.index, counts.to_numpy(), strict=True)}
    open_groups = [group for group in rows if group not in chosen]
    open_groups.sort(key=lambda group: (-rows[group].sum(), _draw(seed, group)))
    for group in open_groups:
        # How far each part still is from its share of the classes in this group.
        need_S = (lacking_SC / np.maximum(wanted_SC, 1e-9)) @ rows[group]
        best = int(np.argmax(need_S))
        chosen[group] = names[best]
        lacking_SC[best] -= rows[group]
    return kept["group"].map(chosen)


def _draw(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed} {group}".encode()).digest()
