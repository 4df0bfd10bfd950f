"""From scan records to a verdict on each file, with counts that add up."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import pandas as pd

from drone.data.prepare.ledger import Decision
from drone.data.prepare.near_duplicates import near_groups
from drone.data.prepare.original_tables import original_flags
from drone.data.prepare.scan import ScanRecord
from drone.data.prepare.verdicts import ACROSS, BY_HAND, EXTENSION, NEAR, STEPS, WITHIN, Policy

NearDuplicates = Literal["keep", "drop"]
"""Whether all near duplicates are kept, in one split, or one of each group."""

_COLUMNS = tuple(ScanRecord.__dataclass_fields__)


def assign_verdicts(
    records: Iterable[ScanRecord],
    policy: Policy,
    threshold: int,
    *,
    near_duplicates: NearDuplicates = "keep",
    decisions: Mapping[str, Decision] | None = None,
    previous_md5: Collection[str] = (),
) -> pd.DataFrame:
    """Returns the records with a verdict, a reason and a group of near duplicates each.

    Args:
        records: In the order of their paths: the first of several copies is kept.
        policy: What happens to copies in several classes.
        threshold: Maximum distance of near duplicates, in bits; they share a group.
        near_duplicates: Whether all of a group are kept.
        decisions: The user's decisions by md5.
        previous_md5: md5 of images in an earlier version of the data set. Of a group of near
            duplicates they are preferred.

    Returns:
        The columns of `ScanRecord` and `given_class` (class of the folder; `class_name` is the
        one that the user may have changed it to), `kept` (bool), `reason` (one of STEPS, or ""),
        `duplicate_of` (path below its root of the first copy, or ""), `duplicate_class` (its
        class), `group` (for files that get a split, the md5 that names the group; else "").
    """
    frame = pd.DataFrame([asdict(record) for record in records], columns=list(_COLUMNS))
    frame["given_class"] = frame["class_name"]
    frame["reason"] = frame["problem"]
    frame["duplicate_of"] = ""
    frame["duplicate_class"] = ""
    actions = {md5: decision.action for md5, decision in (decisions or {}).items()}
    labels = {md5: decision.class_name for md5, decision in (decisions or {}).items()}
    # Relabelling comes first: it can settle which of several classes a copy belongs to.
    relabelled = frame["md5"].map(actions) == "relabel"
    frame.loc[relabelled, "class_name"] = frame.loc[relabelled, "md5"].map(labels)
    if policy == "seed":
        frame.loc[original_flags(frame)["errornous_file"] == 1, "reason"] = EXTENSION
    _mark_within(frame)
    _mark_across(frame, policy)
    # After the copies, so that a single file of each image keeps its split and pixels.
    dropped = (frame["reason"] == "") & (frame["md5"].map(actions) == "drop")
    frame.loc[dropped, "reason"] = BY_HAND
    frame["kept"] = frame["reason"] == ""
    # After drops by hand: where the largest of a group was dropped, the next one is kept.
    if near_duplicates == "drop":
        _mark_near(frame, threshold, previous_md5)
    frame["group"] = near_groups(frame, threshold)
    return frame


def _mark_within(frame: pd.DataFrame) -> None:
    """Leaves out every copy but the first of its class."""
    usable = frame[frame["reason"] == ""]
    first = usable.groupby(["class_name", "md5"])["path"].transform("first")
    copies = usable.duplicated(["class_name", "md5"], keep="first")
    rows = usable.index[copies]
    frame.loc[rows, "reason"] = WITHIN
    frame.loc[rows, "duplicate_of"] = first[copies]
    frame.loc[rows, "duplicate_class"] = usable.loc[rows, "class_name"]


def _mark_across(frame: pd.DataFrame, policy: Policy) -> None:
    """Leaves out images that lie in several classes, as the policy says."""
    usable = frame[frame["reason"] == ""]
    shared = usable[usable.duplicated("md5", keep=False)]
    # The majority counts all copies, also those that `_mark_within` has left out.
    copies = frame[frame["reason"].isin(("", WITHIN))].groupby(["md5", "class_name"]).size()
    for md5, rows in shared.groupby("md5", sort=False):
        kept = _kept_class(rows, copies[md5], policy)
        removed = rows[rows["class_name"] != kept]
        frame.loc[removed.index, "reason"] = ACROSS
        for index in removed.index:
            others = rows.drop(index)
            frame.loc[index, "duplicate_of"] = others["path"].iloc[0]
            frame.loc[index, "duplicate_class"] = others["class_name"].iloc[0]


def _kept_class(rows: pd.DataFrame, copies: "pd.Series[int]", policy: Policy) -> str | None:
    if policy in ("first", "seed"):  # Paths begin with the class: the first is of the first class.
        return str(rows["class_name"].iloc[0])
    if policy == "majority":
        largest = copies[copies == copies.max()]
        return str(largest.index[0]) if len(largest) == 1 else None
    return None


def _mark_near(frame: pd.DataFrame, threshold: int, previous_md5: Collection[str]) -> None:
    """Keeps one image per group: one of an earlier version, else the largest, else the first."""
    group = near_groups(frame, threshold)
    kept = frame[frame["kept"]].assign(
        group=group,
        previous=frame["md5"].isin(list(previous_md5)),
        pixels=frame["width"] * frame["height"],
    )
    # Stable, so that of equal images the first by path is kept.
    order = kept.sort_values(["previous", "pixels"], ascending=[False, False], kind="stable")
    first = order.groupby("group").head(1).set_index("group")
    removed = order.index[order.duplicated("group")]
    frame.loc[removed, "reason"] = NEAR
    frame.loc[removed, "duplicate_of"] = group[removed].map(first["path"])
    frame.loc[removed, "duplicate_class"] = group[removed].map(first["class_name"])
    frame.loc[removed, "kept"] = False


def steps_table(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Returns the number of files by class before, removed by each step, and after.

    Returns:
        A column per class and "total". Rows "found", one per reason of STEPS (negative),
        "relabelled" (images that the user moved between classes, 0 in total) and "kept", which
        is the sum of the rows above it.
    """
    counts = pd.crosstab(frame["reason"], frame["given_class"])
    counts = counts.reindex(index=["", *STEPS], columns=list(classes), fill_value=0)
    kept_counts = frame.loc[frame["kept"], "class_name"].value_counts()
    kept = kept_counts.reindex(list(classes), fill_value=0)
    relabelled = kept - counts.loc[""]
    table = pd.concat(
        [
            counts.sum(axis=0).to_frame("found").T,
            -counts.loc[list(STEPS)],
            relabelled.to_frame("relabelled").T,
            kept.to_frame("kept").T,
        ]
    )
    table.index.name = "step"
    table.columns.name = None
    table["total"] = table.sum(axis=1)
    return table
