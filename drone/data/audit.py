"""What is in a heap of pictures, in tables: each is a section of the audit and a CSV file."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from drone.data.bins import BIN_SIDES_PX, nearest_bin
from drone.data.clean import ACROSS, NEAR, WITHIN
from drone.data.ledger import BY_HAND
from drone.data.split import SplitSettings

_OUTLYING = 3.5
"""Modified z-score beyond which a value counts as an outlier (Iglewicz and Hoaglin 1993)."""

_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""How names of a format end, where it is not just the format's name."""


def errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Files that hold no usable picture: `path`, `given_class`, `reason`, `detail`."""
    fine = ("", WITHIN, ACROSS, BY_HAND, NEAR)
    return frame.loc[~frame["reason"].isin(fine), ["path", "given_class", "reason", "detail"]]


def copies(frame: pd.DataFrame) -> pd.DataFrame:
    """Every file with a byte-for-byte copy, copies together.

    Returns:
        Columns `md5`, `path`, `given_class`, `across` (whether folders of several classes have
        it), `kept`; the sets across classes first, then the largest.
    """
    pictures = frame[frame["width"] > 0]
    own = pictures.loc[pictures.duplicated("md5", keep=False), ["md5", "path", "given_class"]]
    own["across"] = own.groupby("md5")["given_class"].transform("nunique") > 1
    own["kept"] = frame.loc[own.index, "kept"]
    return _largest_first(own, "md5", "across")


def near_duplicates(frame: pd.DataFrame) -> pd.DataFrame:
    """Groups of near duplicates: `group`, `path`, `md5`, `given_class`, size, `across`, `kept`.

    Those with several classes come first, then the largest. Where `--near drop` left pictures
    out, they stand in the group of the one that was kept.
    """
    group = frame["group"].copy()
    dropped = frame["reason"] == NEAR
    of_kept = frame[frame["kept"]].drop_duplicates("path").set_index("path")["group"]
    group[dropped] = frame.loc[dropped, "duplicate_of"].map(of_kept)
    own = frame.assign(group=group)[group.fillna("") != ""]
    own = own[own.duplicated("group", keep=False)]
    own["across"] = own.groupby("group")["class_name"].transform("nunique") > 1
    columns = ["group", "path", "md5", "given_class", "width", "height", "across", "kept"]
    return _largest_first(own[columns], "group", "across")


def _largest_first(frame: pd.DataFrame, name: str, first: str) -> pd.DataFrame:
    size = frame.groupby(name)[name].transform("size")
    order = frame.assign(size=size).sort_values(
        [first, "size", name, "path"], ascending=[False, False, True, True]
    )
    return order.drop(columns="size")


def sizes(frame: pd.DataFrame) -> pd.DataFrame:
    """Pictures by class and the bin nearest their longer side, and those below the smallest bin."""
    pictures = frame[frame["width"] > 0]
    longer = pictures[["width", "height"]].max(axis=1)
    names = [f"{side}" for side in BIN_SIDES_PX]
    table = pd.crosstab(
        pd.Series(np.array(names)[nearest_bin(longer)], index=pictures.index, name="bin_px"),
        pictures["given_class"],
    ).reindex(names, fill_value=0)
    small = pictures[longer < BIN_SIDES_PX[0]]["given_class"].value_counts()
    table.loc[f"of these below {BIN_SIDES_PX[0]}"] = small.reindex(table.columns, fill_value=0)
    return _with_total(table)


def below_smallest(frame: pd.DataFrame, step_px: int = 32) -> pd.DataFrame:
    """Pictures whose longer side is below the smallest bin, by that side in steps."""
    pictures = frame[frame["width"] > 0]
    longer = pictures[["width", "height"]].max(axis=1)
    edges = [*range(0, BIN_SIDES_PX[0], step_px), BIN_SIDES_PX[0]]
    names = [f"{low} to {high - 1}" for low, high in itertools.pairwise(edges)]
    part = pd.cut(longer, edges, right=False, labels=names).rename("longer_side_px")
    table = pd.crosstab(part, pictures["given_class"]).reindex(names, fill_value=0)
    return _with_total(table.reindex(columns=sorted(pictures["given_class"].unique())).fillna(0))


def formats(frame: pd.DataFrame) -> pd.DataFrame:
    """Pictures by format and pixel mode, and how many of each have a name that says otherwise."""
    pictures = frame[frame["width"] > 0]
    table = pictures.groupby(["format", "mode"]).size().to_frame("pictures")
    wrong = pictures[misnamed(pictures)].groupby(["format", "mode"]).size()
    turned = pictures[pictures["orientation"] > 1].groupby(["format", "mode"]).size()
    table["name says otherwise"] = wrong.reindex(table.index, fill_value=0)
    table["turned by EXIF"] = turned.reindex(table.index, fill_value=0)
    return table.sort_values("pictures", ascending=False, kind="stable").reset_index()


def misnamed(pictures: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the end of each picture's name belongs to another format than its content."""
    names, kinds = pictures["path"].str.lower(), pictures["format"]
    right = [
        name.endswith(_SUFFIXES.get(kind, (f".{kind.lower()}",)))
        for name, kind in zip(names, kinds, strict=True)
    ]
    return pd.Series(~np.array(right, dtype=bool), index=pictures.index)


def outliers(frame: pd.DataFrame) -> pd.DataFrame:
    """Kept pictures that are unusually blurred, dark or bright, the most unusual first.

    Returns:
        Columns `path`, `md5`, `given_class`, `what` ("blurred", "dark" or "bright"), `value`
        (sharpness or brightness) and `score` (modified z-score of its logarithm or itself).
    """
    kept = frame[frame["kept"]]
    sharp = _scores(np.log(kept["sharpness"].clip(lower=1e-3)))
    light = _scores(kept["brightness"])
    parts = [
        (kept["sharpness"], -sharp, "blurred"),
        (kept["brightness"], -light, "dark"),
        (kept["brightness"], light, "bright"),
    ]
    tables = []
    for value, score, what in parts:
        table = kept.loc[score > _OUTLYING, ["path", "md5", "given_class"]]
        table = table.assign(what=what, value=value, score=score.round(2))
        tables.append(table.sort_values(["score", "path"], ascending=[False, True]))
    return pd.concat(tables)


def _scores(values: "pd.Series[float]") -> "pd.Series[float]":
    """Modified z-scores: distance from the median in robust standard deviations."""
    away = values - values.median()
    spread = 1.4826 * float(away.abs().median())
    return away / spread if spread > 0 else away * 0


@dataclass(frozen=True)
class Leakage:
    """How a split that does not know of copies would have judged the model on what it learnt."""

    test: float
    """Pictures that a random test split would hold."""

    exact: float
    """Of these, pictures with a byte-for-byte copy in train."""

    twins: float
    """Of these, pictures with a copy or near duplicate in train."""


def leakage(frame: pd.DataFrame, settings: SplitSettings) -> Leakage:
    """Expected values for a random split of all pictures as they were found, copies and all.

    Each picture falls into test with its share, and each of its n twins into train with that
    share, so it meets at least one there with the probability 1 - (1 - train)^n.
    """
    pictures = frame[frame["width"] > 0]
    # Of a picture that the verdicts left out for its copies, the group is its md5.
    groups = pictures.groupby("md5")["group"].transform("max")
    groups = groups.where(groups != "", pictures["md5"])

    def meeting(names: "pd.Series[str]") -> float:
        twins = names.groupby(names).transform("size") - 1
        return float((settings.test * (1 - (1 - settings.train) ** twins)).sum())

    return Leakage(
        test=settings.test * len(pictures), exact=meeting(pictures["md5"]), twins=meeting(groups)
    )


def _with_total(table: pd.DataFrame) -> pd.DataFrame:
    table = table.astype(int)
    table.columns.name = None
    table["total"] = table.sum(axis=1)
    return table
