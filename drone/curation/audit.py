"""The tables of the audit; each is a section of the page and a CSV file.

All take the manifest of a data set, one row per file.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from drone.collect import provenance as collected
from drone.data.bins import BIN_SIDES_PX, nearest_bin
from drone.data.prepare.roots import Opener
from drone.data.prepare.split import SplitSettings
from drone.data.prepare.verdicts import ACROSS, BY_HAND, NEAR, WITHIN
from drone.errors import DataError

_OUTLIER_SCORE = 3.5
"""Modified z-score beyond which a value counts as an outlier (Iglewicz and Hoaglin 1993)."""

_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"),
    "PNG": (".png", ".apng"),
    "HEIF": (".heic", ".heif", ".hif"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""File name suffixes by format, where they are not just the format's name."""


def errors(manifest: pd.DataFrame) -> pd.DataFrame:
    """Lists files without a usable image: `path`, `given_class`, `reason`, `detail`."""
    usable = ("", WITHIN, ACROSS, BY_HAND, NEAR)
    return manifest.loc[
        ~manifest["reason"].isin(usable), ["path", "given_class", "reason", "detail"]
    ]


def copies(manifest: pd.DataFrame) -> pd.DataFrame:
    """Lists every file that has a copy: the same pixels, whatever its metadata and container.

    Returns:
        Columns `content`, `md5`, `path`, `given_class`, `kind`, `across` (whether folders of
        several classes, or of one and of negatives, have copies) and `kept`. Copies are
        consecutive; sets across classes come first, then the largest.
    """
    images = manifest[manifest["width"] > 0]
    columns = ["content", "md5", "path", "given_class", "kind"]
    copies = images.loc[images.duplicated("content", keep=False), columns]
    copies["across"] = copies.groupby("content")["given_class"].transform("nunique") > 1
    copies["kept"] = manifest.loc[copies.index, "kept"]
    return _sort_sets(copies, "content")


def near_duplicates(manifest: pd.DataFrame) -> pd.DataFrame:
    """Lists every image that has a near duplicate.

    Images that `--near-duplicates drop` left out are in the group of the one that was kept.

    Returns:
        Columns `group`, `path`, `md5`, `given_class`, `kind`, `width`, `height`, `across` (whether
        the group has several classes, or a class and negatives) and `kept`. Groups across classes
        come first, then the largest.
    """
    group = manifest["group"].copy()
    dropped = manifest["reason"] == NEAR
    # The first of several: raw folders may share a path.
    group_of_kept = manifest[manifest["kept"]].drop_duplicates("path").set_index("path")["group"]
    group[dropped] = manifest.loc[dropped, "duplicate_of"].map(group_of_kept)
    near = manifest.assign(group=group)[group.fillna("") != ""]
    near = near[near.duplicated("group", keep=False)]
    near["across"] = near.groupby("group")["class_name"].transform("nunique") > 1
    columns = ["group", "path", "md5", "given_class", "kind", "width", "height", "across", "kept"]
    return _sort_sets(near[columns], "group")


def _sort_sets(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Sorts the rows so that sets are together: those across classes first, then the largest."""
    size = table.groupby(key)[key].transform("size")
    ordered = table.assign(size=size).sort_values(
        ["across", "size", key, "path"], ascending=[False, False, True, True]
    )
    return ordered.drop(columns="size")


def sizes(manifest: pd.DataFrame) -> pd.DataFrame:
    """Counts images by class and by the bin nearest to their longer side.

    The last row counts those below the smallest bin, which are in its row too.
    """
    images = manifest[manifest["width"] > 0]
    longer = images[["width", "height"]].max(axis=1)
    names = [f"{side}" for side in BIN_SIDES_PX]
    table = pd.crosstab(
        pd.Series(np.array(names)[nearest_bin(longer)], index=images.index, name="bin_px"),
        images["given_class"],
    ).reindex(names, fill_value=0)
    small = images[longer < BIN_SIDES_PX[0]]["given_class"].value_counts()
    table.loc[f"of these below {BIN_SIDES_PX[0]}"] = small.reindex(table.columns, fill_value=0)
    return _with_total(table)


def sizes_below_smallest_bin(manifest: pd.DataFrame, step_px: int = 32) -> pd.DataFrame:
    """Counts images whose longer side is below the smallest bin, in steps of that side."""
    images = manifest[manifest["width"] > 0]
    longer = images[["width", "height"]].max(axis=1)
    edges = [*range(0, BIN_SIDES_PX[0], step_px), BIN_SIDES_PX[0]]
    names = [f"{low} to {high - 1}" for low, high in itertools.pairwise(edges)]
    step = pd.cut(longer, edges, right=False, labels=names).rename("longer_side_px")
    table = pd.crosstab(step, images["given_class"]).reindex(names, fill_value=0)
    return _with_total(table.reindex(columns=sorted(images["given_class"].unique())).fillna(0))


def formats(manifest: pd.DataFrame) -> pd.DataFrame:
    """Counts images by format and pixel mode, and those misnamed or rotated by EXIF."""
    images = manifest[manifest["width"] > 0]
    table = images.groupby(["format", "mode"]).size().to_frame("images")
    misnamed = images[_misnamed(images)].groupby(["format", "mode"]).size()
    rotated = images[images["orientation"] > 1].groupby(["format", "mode"]).size()
    table["misnamed"] = misnamed.reindex(table.index, fill_value=0)
    table["rotated by EXIF"] = rotated.reindex(table.index, fill_value=0)
    return table.sort_values("images", ascending=False, kind="stable").reset_index()


def _misnamed(images: pd.DataFrame) -> "pd.Series[bool]":
    """Returns which images have a file name suffix of another format than their content."""
    paths = images["path"].str.lower()
    matching = [
        path.endswith(_SUFFIXES.get(name, (f".{name.lower()}",)))
        for path, name in zip(paths, images["format"], strict=True)
    ]
    return pd.Series(~np.array(matching, dtype=bool), index=images.index)


def outliers(manifest: pd.DataFrame) -> pd.DataFrame:
    """Lists kept images that are unusually blurred, dark or bright, the most unusual first.

    Returns:
        Columns `path`, `md5`, `given_class`, `kind`, `what` ("blurred", "dark" or "bright"),
        `value` (sharpness or brightness) and `score` (modified z-score of log sharpness or
        brightness).
    """
    kept = manifest[manifest["kept"]]
    # Sharpness spans orders of magnitude, and only its logarithm is about normal.
    sharpness = _robust_z_scores(np.log(kept["sharpness"].clip(lower=1e-3)))
    brightness = _robust_z_scores(kept["brightness"])
    # Blurred and dark are the low ends, hence the minus; very sharp is no problem.
    kinds = [
        (kept["sharpness"], -sharpness, "blurred"),
        (kept["brightness"], -brightness, "dark"),
        (kept["brightness"], brightness, "bright"),
    ]
    tables = []
    for value, score, what in kinds:
        table = kept.loc[score > _OUTLIER_SCORE, ["path", "md5", "given_class", "kind"]]
        table = table.assign(what=what, value=value, score=score.round(2))
        tables.append(table.sort_values(["score", "path"], ascending=[False, True]))
    return pd.concat(tables)


def _robust_z_scores(values: "pd.Series[float]") -> "pd.Series[float]":
    """Returns modified z-scores: distances from the median in robust standard deviations."""
    distance = values - values.median()
    # 1.4826 makes the median absolute deviation of a normal distribution its standard deviation.
    deviation = 1.4826 * float(distance.abs().median())
    return distance / deviation if deviation > 0 else distance * 0


@dataclass(frozen=True)
class Leakage:
    """Expected leakage from train into test of a random split that ignores duplicates."""

    test: float
    """Number of test images."""

    exact: float
    """Number of test images with a copy in train."""

    twins: float
    """Number of test images with a copy or near duplicate in train."""


def leakage(manifest: pd.DataFrame, settings: SplitSettings) -> Leakage:
    """Computes the leakage expected of a random split of all images found, copies included.

    Each image is in test with probability `settings.test`, and each of its n duplicates in train
    with probability `settings.train`, so at least one is there with probability
    1 - (1 - train)^n.
    """
    images = manifest[manifest["width"] > 0]
    # Images left out as copies have no group of their own; their content stands in for it.
    groups = images.groupby("content")["group"].transform("max")
    groups = groups.where(groups != "", images["content"])

    def leaked(sets: "pd.Series[str]") -> float:
        duplicates = sets.groupby(sets).transform("size") - 1
        return float((settings.test * (1 - (1 - settings.train) ** duplicates)).sum())

    return Leakage(
        test=settings.test * len(images), exact=leaked(images["content"]), twins=leaked(groups)
    )


def _with_total(table: pd.DataFrame) -> pd.DataFrame:
    table = table.astype(int)
    table.columns.name = None
    table["total"] = table.sum(axis=1)
    return table


def read_provenance(roots: Iterable[str], opener: Opener) -> pd.DataFrame:
    """Reads where images came from, as `collect` recorded it beside the class folders.

    Returns:
        Columns `md5`, `source` and `licence`; empty if no root has such a record.
    """
    rows = []
    for root in roots:
        try:
            # Far beyond any record: read() cuts longer files off, which would lose lines silently.
            content = opener(root).read(collected.FILE_NAME, 2**30)
        except (OSError, DataError):
            continue
        for _, record in collected.parse_lines(content):
            # Without an md5 it is a failed download, or the last line of an interrupted one.
            if record.get("md5"):
                rows.append([str(record.get(name) or "") for name in ("md5", "source", "licence")])
    return pd.DataFrame(rows, columns=["md5", "source", "licence"])


def sources(manifest: pd.DataFrame, provenance: pd.DataFrame) -> pd.DataFrame:
    """Counts kept images by source and licence.

    Args:
        manifest: Manifest of the data set.
        provenance: Result of `read_provenance`.
    """
    recorded = provenance.drop_duplicates("md5")
    kept = manifest.loc[manifest["kept"], ["md5"]].merge(recorded, on="md5", how="left")
    kept = kept.fillna({"source": "not recorded", "licence": "not recorded"})
    return kept.groupby(["source", "licence"]).size().rename("images").reset_index()
