"""Leaves out copies of an image: within a class and across classes."""

import pandas as pd

from drone.data.prepare.verdicts import ACROSS, WITHIN, Policy


def mark_copies(frame: pd.DataFrame, key: str, policy: Policy) -> None:
    """Sets the reason of every copy that is not kept, and which copy it is of, in place.

    Args:
        frame: Columns `path`, `class_name`, `reason` ("" for usable files), `duplicate_of`,
            `duplicate_class` and the key, in the order of the paths.
        key: Column by which copies are equal: "content" for the pixels, "md5" for the files.
        policy: What happens to copies in several classes.
    """
    _mark_within(frame, key)
    _mark_across(frame, key, policy)


def _mark_within(frame: pd.DataFrame, key: str) -> None:
    """Leaves out every copy but the first of its class."""
    usable = frame[frame["reason"] == ""]
    first = usable.groupby(["class_name", key])["path"].transform("first")
    copies = usable.duplicated(["class_name", key], keep="first")
    rows = usable.index[copies]
    frame.loc[rows, "reason"] = WITHIN
    frame.loc[rows, "duplicate_of"] = first[copies]
    frame.loc[rows, "duplicate_class"] = usable.loc[rows, "class_name"]


def _mark_across(frame: pd.DataFrame, key: str, policy: Policy) -> None:
    """Leaves out images that lie in several classes, as the policy says."""
    usable = frame[frame["reason"] == ""]
    shared = usable[usable.duplicated(key, keep=False)]
    # The majority counts all copies, also those that `_mark_within` has left out.
    copies = frame[frame["reason"].isin(("", WITHIN))].groupby([key, "class_name"]).size()
    for content, rows in shared.groupby(key, sort=False):
        kept = _kept_class(rows, copies[content], policy)
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
