"""From what the scan saw to a verdict on each file, with counts that add up."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np
import pandas as pd

from drone.data import hashing
from drone.data.ledger import BY_HAND, Decision
from drone.data.scan import Record

Policy = Literal["drop-all", "first", "majority", "seed"]
"""What happens to a picture that lies in folders of several classes.

drop-all: no copy is kept, since its label is unknown. first: the copy whose path sorts first.
majority: a copy of the class that holds most of them; where classes tie, none. seed: as the
original project did: the copy of the first class stays, and names that do not end in one of
SEED_SUFFIXES are errors, whatever the content.
"""

Near = Literal["keep", "drop"]
"""Near duplicates: all are kept, in one split, or one of each group."""

SEED_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".ppm")

EXTENSION = "extension"
WITHIN = "duplicate-within"
ACROSS = "duplicate-across"
NEAR = "near-duplicate"
BRIDGE = "joins-splits"
"""A new file whose near duplicates are in two splits already; see `split.assign`."""

STEPS = (
    EXTENSION,
    "unreadable",
    "empty",
    "non-media",
    "undecodable",
    "unsupported",
    "too-small",
    "too-large",
    WITHIN,
    ACROSS,
    BY_HAND,
    NEAR,
    BRIDGE,
)
"""Reasons for which a file is left out, in the order of the steps."""


_COLUMNS = tuple(Record.__dataclass_fields__)


def judge(
    records: Iterable[Record],
    policy: Policy,
    max_distance: int,
    *,
    near: Near = "keep",
    by_hand: Mapping[str, Decision] | None = None,
    known: Collection[str] = (),
) -> pd.DataFrame:
    """The records with a verdict, a reason and a duplicate group each.

    Args:
        records: in the order of their paths: of several copies the first is kept.
        policy: for copies in several classes.
        max_distance: of perceptual hashes, in bits; near duplicates share a group.
        near: whether all of a group are kept.
        by_hand: by md5 what a person decided.
        known: md5 of pictures that an earlier data set keeps; of near duplicates they stay.

    Returns:
        The columns of `Record` and `given_class` (of the folder; `class_name` is what a person
        may have made of it), `kept` (bool), `reason` (one of STEPS, or ""), `duplicate_of`
        (root-independent path of the copy that came first, or ""), `duplicate_class` (its class),
        `group` (of files that get a split: md5 that names the group, the smallest in it; else "").
    """
    frame = pd.DataFrame([asdict(record) for record in records], columns=list(_COLUMNS))
    frame["given_class"] = frame["class_name"]
    frame["reason"] = frame["problem"]
    frame["duplicate_of"] = ""
    frame["duplicate_class"] = ""
    actions = {md5: decision.action for md5, decision in (by_hand or {}).items()}
    labels = {md5: decision.class_name for md5, decision in (by_hand or {}).items()}
    relabelled = frame["md5"].map(actions) == "relabel"
    frame.loc[relabelled, "class_name"] = frame.loc[relabelled, "md5"].map(labels)
    if policy == "seed":
        frame.loc[seed_flags(frame)["errornous_file"] == 1, "reason"] = EXTENSION
    _mark_within(frame)
    _mark_across(frame, policy)
    dropped = (frame["reason"] == "") & (frame["md5"].map(actions) == "drop")
    frame.loc[dropped, "reason"] = BY_HAND
    frame["kept"] = frame["reason"] == ""
    if near == "drop":
        _drop_near(frame, max_distance, known)
    frame["group"] = near_groups(frame, max_distance)
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
    if policy in ("first", "seed"):  # Paths begin with the class: the first is of the first class.
        return str(rows["class_name"].iloc[0])
    if policy == "majority":
        most = copies[copies == copies.max()]
        return str(most.index[0]) if len(most) == 1 else None
    return None


def _drop_near(frame: pd.DataFrame, max_distance: int, known: Collection[str]) -> None:
    """Keeps one of each group: a known one, else the largest, else the first by path."""
    group = near_groups(frame, max_distance)
    kept = frame[frame["kept"]].assign(
        group=group, known=frame["md5"].isin(list(known)), pixels=frame["width"] * frame["height"]
    )
    order = kept.sort_values(["known", "pixels"], ascending=[False, False], kind="stable")
    first = order.groupby("group").head(1).set_index("group")
    lost = order.index[order.duplicated("group")]
    frame.loc[lost, "reason"] = NEAR
    frame.loc[lost, "duplicate_of"] = group[lost].map(first["path"])
    frame.loc[lost, "duplicate_class"] = group[lost].map(first["class_name"])
    frame.loc[lost, "kept"] = False


def shared_out(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Which files get a split: those that are kept, and those that only a person left out.

    So what a person decides moves no other picture to another split.
    """
    return frame["kept"] | (frame["reason"] == BY_HAND)


def near_groups(frame: pd.DataFrame, max_distance: int) -> "pd.Series[str]":
    """The md5 that names the group of near duplicates of each file with a split; else "".

    A group is what pairs at most `max_distance` bits apart join; its smallest md5 names it.
    """
    shared = frame[shared_out(frame)]
    result = pd.Series("", index=frame.index)
    if shared.empty:
        return result
    hashes = np.frombuffer(bytes.fromhex("".join(shared["phash"])), np.uint8)
    numbers = hashing.near_groups(hashes.reshape(len(shared), -1), max_distance)
    result[shared.index] = shared["md5"].groupby(numbers).transform("min")
    return result


def steps_table(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Files by class before, removed by each step, and after: rows add up to the last one.

    Returns:
        A column a class and "total"; rows "found", one a reason of STEPS (negative numbers),
        "relabelled" (what a person moved between classes, in total 0) and "kept".
    """
    counts = pd.crosstab(frame["reason"], frame["given_class"])
    counts = counts.reindex(index=["", *STEPS], columns=list(classes), fill_value=0)
    own = frame.loc[frame["kept"], "class_name"].value_counts()
    kept = own.reindex(list(classes), fill_value=0)
    moved = kept - counts.loc[""]
    table = pd.concat(
        [
            counts.sum(axis=0).to_frame("found").T,
            -counts.loc[list(STEPS)],
            moved.to_frame("relabelled").T,
            kept.to_frame("kept").T,
        ]
    )
    table.index.name = "step"
    table.columns.name = None
    table["total"] = table.sum(axis=1)
    return table


def seed_flags(frame: pd.DataFrame) -> pd.DataFrame:
    """What the original project said of each file: one file can have several of its flags.

    Returns:
        Columns `errornous_file` (the name does not end in one of SEED_SUFFIXES), `duplicate` (a
        copy in the same folder came before) and `cross_duplicate` (the first of its folder, and a
        folder before has a copy), 0 or 1, and `parent_img` and `duplicate_class`, path and class of
        that copy, or "".
    """
    names = frame["path"].str.lower()
    readable = frame["md5"] != ""
    within = readable & frame.duplicated(["given_class", "md5"], keep="first")
    first_here = frame.groupby(["given_class", "md5"])["path"].transform("first")
    first_of_all = frame.groupby("md5")[["path", "given_class"]].transform("first")
    across = readable & ~within & (first_of_all["given_class"] != frame["given_class"])
    parent = first_of_all["path"].where(across, first_here.where(within, ""))
    return pd.DataFrame(
        {
            "errornous_file": (~names.str.endswith(SEED_SUFFIXES)).astype(int),
            "duplicate": within.astype(int),
            "parent_img": parent,
            "cross_duplicate": across.astype(int),
            "duplicate_class": first_of_all["given_class"].where(across, ""),
        }
    )


def seed_counts(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """The original project's counts by class and in total; a file may be in several rows.

    Returns:
        Rows "errornous_file", "duplicate", "cross_duplicate" and "removed" (any of them).
    """
    flags = seed_flags(frame)[["errornous_file", "duplicate", "cross_duplicate"]]
    flags["removed"] = flags.max(axis=1)
    table = flags.groupby(frame["given_class"]).sum().T.reindex(columns=list(classes), fill_value=0)
    table.columns.name = None
    table["total"] = table.sum(axis=1)
    return table


def duplicate_table(frame: pd.DataFrame, policy: Policy) -> pd.DataFrame:
    """The table that the original project wrote as eda_duplicate_list.csv.

    Columns: filename ("Class/name"), classname, errornous_file (0/1), duplicate (0/1: a copy of
    the same class came before), parent_img (that copy), cross_duplicate (0/1), duplicate_class.
    With the policy "seed" the flags are the original's, with the others our verdicts.
    """
    names = pd.DataFrame({"filename": frame["path"], "classname": frame["given_class"]})
    if policy == "seed":
        return pd.concat([names, seed_flags(frame)], axis=1)
    within, across = frame["reason"] == WITHIN, frame["reason"] == ACROSS
    broken = ~frame["reason"].isin(("", WITHIN, ACROSS, BY_HAND, NEAR, BRIDGE))
    return names.assign(
        errornous_file=broken.astype(int),
        duplicate=within.astype(int),
        parent_img=frame["duplicate_of"],
        cross_duplicate=across.astype(int),
        duplicate_class=frame["duplicate_class"].where(across, ""),
    )
