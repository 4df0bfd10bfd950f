"""How often served answers were right: by week and model, against the labels of a later review."""

import pandas as pd

from drone.data.prepare.verdicts import BRIDGE, NEAR
from drone.evaluation.metrics import proportion

SAMPLE, CHOSEN = "sample", "unsure or none"
"""Why images were kept: as a sample of all, or for their answer alone. Only the sample tells how
good all answers are; the others were kept because they are hard."""

_KEYS = ["week", "model", "kept_as"]


def labels_by_md5(manifest: pd.DataFrame) -> dict[str, str]:
    """Returns the label of each labelled image, also of those that were left out as copies.

    An exact copy has the label of the image that is kept, a near one that of the image that stands
    for it. Images without a label are those that were dropped by hand, copies in several classes of
    which none is kept, and files that could not be used.

    Args:
        manifest: Manifest of a data set.
    """
    near = manifest["reason"] == NEAR
    # Left out for the sake of the splits, and not for their labels.
    labelled = manifest["kept"] | near | (manifest["reason"] == BRIDGE)
    label = manifest["class_name"].mask(near, manifest["duplicate_class"])[labelled]
    rows = manifest.loc[labelled, ["md5", "content"]].assign(label=label)
    # Where files and not pixels are compared, copies may have been kept in several classes.
    is_clear = rows.groupby("content")["label"].transform("nunique") == 1
    by_content = rows[is_clear].set_index("content")["label"].to_dict()
    copies = manifest[manifest["content"].isin(list(by_content))]
    by_md5 = dict(zip(copies["md5"], copies["content"].map(by_content), strict=True))
    return {**by_md5, **rows.set_index("md5")["label"].to_dict()}


def accuracy_by_week(answers: pd.DataFrame) -> pd.DataFrame:
    """Returns the accuracy of served answers over time.

    Args:
        answers: One row per image of the store: `time` (ISO 8601, UTC), `model`, `sampled` (bool),
            `answer` (the label that was served) and `label` (the true one; NaN if unknown).

    Returns:
        One row per week (its Monday), model and reason to keep (`SAMPLE` or `CHOSEN`), sorted:
        `images` in the store, `labelled` ones, and `accuracy` on those with `low` and `high`, its
        95 % interval of Wilson (1927). Rows without a labelled image are left out.
    """
    day = pd.to_datetime(answers["time"], utc=True, format="ISO8601").dt.tz_localize(None)
    week = day.dt.to_period("W").dt.start_time.dt.strftime("%Y-%m-%d")
    kept_as = answers["sampled"].map({True: SAMPLE, False: CHOSEN})
    right = (answers["answer"] == answers["label"]).where(answers["label"].notna())
    frame = answers.assign(week=week, kept_as=kept_as, right=right)
    rows = []
    for key, group in frame.groupby(_KEYS, sort=True):
        labelled = group["right"].dropna().astype(bool)
        if len(labelled):
            share = proportion(labelled.to_numpy())
            counts = (len(group), share.support, share.value, share.low, share.high)
            rows.append((*key, *counts))
    return pd.DataFrame(rows, columns=[*_KEYS, "images", "labelled", "accuracy", "low", "high"])
