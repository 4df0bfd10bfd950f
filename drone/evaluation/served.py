"""How often served answers were right: by week and model, against the labels of a later review."""

import pandas as pd

from drone.evaluation.metrics import proportion

SAMPLE, CHOSEN = "sample", "unsure or none"
"""Why images were kept: as a sample of all, or for their answer alone. Only the sample tells how
good all answers are; the others were kept because they are hard."""

_KEYS = ["week", "model", "kept_as"]


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
