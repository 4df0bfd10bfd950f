"""From scan records to a verdict on each file, with counts that add up."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import pandas as pd

from drone.data.prepare.copies import mark_copies
from drone.data.prepare.ledger import Decision
from drone.data.prepare.near_duplicates import near_groups
from drone.data.prepare.original_tables import original_flags
from drone.data.prepare.scan import ScanRecord
from drone.data.prepare.verdicts import BY_HAND, EXTENSION, NEAR, STEPS, Policy

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
    previous: Collection[str] = (),
) -> pd.DataFrame:
    """Returns the records with a verdict, a reason and a group of near duplicates each.

    Args:
        records: In the order of their paths: the first of several copies is kept.
        policy: What happens to copies in several classes.
        threshold: Maximum distance of near duplicates, in bits; they share a group.
        near_duplicates: Whether all of a group are kept.
        decisions: The user's decisions by md5, the last one last. One holds for all copies.
        previous: Contents of the images in an earlier version of the data set. Of a group of
            near duplicates they are preferred.

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
    # The original compared files; a copy with other metadata or in another container is one too.
    key = "md5" if policy == "seed" else "content"
    decided = _decided(frame, key, decisions or {})
    actions = pd.Series([one.action if one else "" for one in decided], frame.index, dtype=object)
    # Relabelling comes first: it can settle which of several classes a copy belongs to.
    labels = [one.class_name if one and one.action == "relabel" else "" for one in decided]
    frame["class_name"] = [
        label or name for label, name in zip(labels, frame["class_name"], strict=True)
    ]
    if policy == "seed":
        frame.loc[original_flags(frame)["errornous_file"] == 1, "reason"] = EXTENSION
    mark_copies(frame, key, policy)
    # After the copies, so that a single file of each image keeps its split and pixels.
    dropped = actions == "drop"
    frame.loc[dropped & (frame["reason"] == ""), "reason"] = BY_HAND
    frame["kept"] = frame["reason"] == ""
    # After drops by hand: where the largest of a group was dropped, the next one is kept.
    if near_duplicates == "drop":
        _mark_near(frame, threshold, previous)
    frame["group"] = near_groups(frame, threshold)
    return frame


def _decided(
    frame: pd.DataFrame, key: str, decisions: Mapping[str, Decision]
) -> list[Decision | None]:
    """Returns the last decision on each file or on one of its copies; None without one."""
    contents = dict(zip(frame["md5"], frame[key], strict=True))
    # In the order of the decisions: the last on any of the copies counts.
    by_content = {
        contents.get(md5) or decision.content: decision for md5, decision in decisions.items()
    }
    by_content.pop("", None)  # No image, and so nothing to decide.
    return [by_content.get(content) for content in frame[key]]


def _mark_near(frame: pd.DataFrame, threshold: int, previous: Collection[str]) -> None:
    """Keeps one image per group: one of an earlier version, else the largest, else the first."""
    group = near_groups(frame, threshold)
    kept = frame[frame["kept"]].assign(
        group=group,
        previous=frame["content"].isin(list(previous)),
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

    Args:
        frame: Verdicts of `assign_verdicts`.
        classes: Names of the columns; `labels.NONE` among them counts negatives.

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
