"""Tables of the original project: its flags on each file, its counts, its list of duplicates.

They let figures be compared with the original's. The spelling `errornous_file` is its own.
"""

from collections.abc import Sequence

import pandas as pd

from drone.data.prepare.copies import mark_copies
from drone.data.prepare.verdicts import ACROSS, BRIDGE, BY_HAND, NEAR, WITHIN, Policy

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".ppm")
_FLAGS = ["errornous_file", "duplicate", "cross_duplicate"]


def original_flags(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the original project's flags of each file, which may have several of them.

    Returns:
        Columns `errornous_file` (the name does not end in jpg, jpeg, png, webp or ppm),
        `duplicate` (an earlier file in the same folder is a copy) and `cross_duplicate` (the
        first copy in its folder, and an earlier folder has one), 0 or 1; `parent_img` and
        `duplicate_class`, the path and class of that earlier copy, or "".
    """
    names = frame["path"].str.lower()
    readable = frame["md5"] != ""
    within = readable & frame.duplicated(["given_class", "md5"], keep="first")
    # The records are sorted by path, so "first" is what the original met first.
    first_in_class = frame.groupby(["given_class", "md5"])["path"].transform("first")
    first_of_all = frame.groupby("md5")[["path", "given_class"]].transform("first")
    # Only the first copy in a folder counts here, as in the original.
    across = readable & ~within & (first_of_all["given_class"] != frame["given_class"])
    parent = first_of_all["path"].where(across, first_in_class.where(within, ""))
    return pd.DataFrame(
        {
            "errornous_file": (~names.str.endswith(_IMAGE_SUFFIXES)).astype(int),
            "duplicate": within.astype(int),
            "parent_img": parent,
            "cross_duplicate": across.astype(int),
            "duplicate_class": first_of_all["given_class"].where(across, ""),
        }
    )


def original_counts(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Returns the original project's counts by class and in total.

    Returns:
        Rows "errornous_file", "duplicate", "cross_duplicate" and "removed" (any of them). A file
        may count in several rows, so they do not add up to "removed".
    """
    flags = original_flags(frame)[_FLAGS]
    flags["removed"] = flags.max(axis=1)
    table = flags.groupby(frame["given_class"]).sum().T.reindex(columns=list(classes), fill_value=0)
    table.columns.name = None
    table["total"] = table.sum(axis=1)
    return table


def duplicate_table(frame: pd.DataFrame, policy: Policy) -> pd.DataFrame:
    """Returns the table that the original project wrote as eda_duplicate_list.csv.

    Under the policy "seed" the flags are the original's, under the others our verdicts, but with
    copies as the original counted them: by the files' bytes.

    Returns:
        Columns `filename` ("Class/name"), `classname` and those of `original_flags`.
    """
    names = pd.DataFrame({"filename": frame["path"], "classname": frame["given_class"]})
    if policy == "seed":
        return pd.concat([names, original_flags(frame)], axis=1)
    broken = ~frame["reason"].isin(("", WITHIN, ACROSS, BY_HAND, NEAR, BRIDGE))
    marked = frame[["path", "class_name", "md5"]].assign(
        reason=frame["reason"].where(broken, ""), duplicate_of="", duplicate_class=""
    )
    mark_copies(marked, "md5", policy)
    within, across = marked["reason"] == WITHIN, marked["reason"] == ACROSS
    return names.assign(
        errornous_file=broken.astype(int),
        duplicate=within.astype(int),
        parent_img=marked["duplicate_of"],
        cross_duplicate=across.astype(int),
        duplicate_class=marked["duplicate_class"].where(across, ""),
    )
