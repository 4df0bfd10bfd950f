"""From what the scan saw to a verdict on each file, with counts that add up."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np
import pandas as pd

from drone.data.hashing import groups, near_pairs
from drone.data.scan import Record

Policy = Literal["drop-all", "first", "majority"]
"""What happens to a picture that lies in folders of several classes.

drop-all: no copy is kept, since its label is unknown. first: the copy whose path sorts first.
majority: a copy of the class that holds most of them; where classes tie, none.
"""

WITHIN = "duplicate-within"
ACROSS = "duplicate-across"
BRIDGE = "joins-splits"
"""A new file whose near duplicates are in two splits already; see `split.assign`."""

STEPS = (
    "unreadable",
    "empty",
    "non-media",
    "undecodable",
    "unsupported",
    "too-small",
    "too-large",
    WITHIN,
    ACROSS,
    BRIDGE,
)
"""Reasons for which a file is left out, in the order of the steps."""


def judge(records: Iterable[Record], policy: Policy, max_distance: int) -> pd.DataFrame:
    """The records with a verdict, a reason and a duplicate group each.

    Args:
        records: in the order of their paths: of several copies the first is kept.
        policy: for copies in several classes.
        max_distance: of perceptual hashes, in bits; near duplicates share a group.

    Returns:
        The columns of `Record` and `kept` (bool), `reason` (one of STEPS, or ""), `duplicate_of`
        (root-independent path of the copy that came first, or ""), `duplicate_class` (its class),
        `group` (of kept files: md5 that names the group, the smallest in it; else "").
    """
    frame = pd.DataFrame([asdict(record) for record in records], columns=list(_COLUMNS))
    frame["reason"] = frame["problem"]
    frame["duplicate_of"] = ""
    frame["duplicate_class"] = ""
    _mark_within(frame)
    _mark_across(frame, policy)
    frame["kept"] = frame["reason"] == ""
    frame["group"] = near_groups(frame, max_distance)
    return frame


_COLUMNS = tuple(Record.__dataclass_fields__)


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
    """Leaves out pictures that more than one class holds, as the policy says."""
    usable = frame[frame["reason"] == ""]
    shared = usable[usable.duplicated("md5", keep=False)]
    copies = frame[frame["reason"].isin(("", WITHIN))].groupby(["md5", "class_name"]).size()
    for md5, rows in shared.groupby("md5", sort=False):
        kept = _kept_class(rows, copies[md5], policy)
        lost = rows[rows["class_name"] != kept]
        frame.loc[lost.index, "reason"] = ACROSS
        for index in lost.index:
            others = rows.drop(index)
            frame.loc[index, "duplicate_of"] = others["path"].iloc[0]
            frame.loc[index, "duplicate_class"] = others["class_name"].iloc[0]


def _kept_class(rows: pd.DataFrame, copies: "pd.Series[int]", policy: Policy) -> str | None:
    if policy == "first":
        return str(rows["class_name"].iloc[0])
    if policy == "majority":
        most = copies[copies == copies.max()]
        return str(most.index[0]) if len(most) == 1 else None
    return None


def near_groups(frame: pd.DataFrame, max_distance: int) -> "pd.Series[str]":
    """The md5 that names each kept file's group of near duplicates; "" for the others.

    A group is what pairs at most `max_distance` bits apart join; its smallest md5 names it.
    """
    kept = frame[frame["kept"]]
    result = pd.Series("", index=frame.index)
    if kept.empty:
        return result
    hashes = np.frombuffer(bytes.fromhex("".join(kept["phash"])), np.uint8).reshape(len(kept), -1)
    numbers = groups(len(kept), near_pairs(hashes, max_distance))
    result[kept.index] = kept["md5"].groupby(numbers).transform("min")
    return result


def steps_table(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Files by class before, removed by each step, and after: rows add up to the last one.

    Returns:
        A column a class and "total"; rows "found", one a reason of STEPS (negative numbers),
        and "kept".
    """
    counts = pd.crosstab(frame["reason"], frame["class_name"])
    counts = counts.reindex(index=["", *STEPS], columns=list(classes), fill_value=0)
    found = counts.sum(axis=0)
    table = pd.concat(
        [
            found.to_frame("found").T,
            -counts.loc[list(STEPS)],
            counts.loc[[""]].rename(index={"": "kept"}),
        ]
    )
    table.index.name = "step"
    table.columns.name = None
    table["total"] = table.sum(axis=1)
    return table


def duplicate_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The table that the original project wrote as eda_duplicate_list.csv.

    Columns: filename ("Class/name"), classname, errornous_file (0/1), duplicate (0/1: a copy of
    the same class came before), parent_img (that copy), cross_duplicate (0/1), duplicate_class.
    """
    within, across = frame["reason"] == WITHIN, frame["reason"] == ACROSS
    broken = ~frame["reason"].isin(("", WITHIN, ACROSS, BRIDGE))
    return pd.DataFrame(
        {
            "filename": frame["path"],
            "classname": frame["class_name"],
            "errornous_file": broken.astype(int),
            "duplicate": within.astype(int),
            "parent_img": frame["duplicate_of"],
            "cross_duplicate": across.astype(int),
            "duplicate_class": frame["duplicate_class"].where(across, ""),
        }
    )
