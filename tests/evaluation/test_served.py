"""Accuracy of served answers over time, and the labels that they are compared with."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from drone.data.prepare.clean import assign_verdicts
from drone.evaluation import plots
from drone.evaluation.metrics import wilson
from drone.evaluation.served import CHOSEN, SAMPLE, accuracy_by_week, labels_by_md5
from drone.labels import CLASSES
from tests.data.test_decisions import by_hand_decision
from tests.data.test_verdicts import near_pair, record


def answers() -> pd.DataFrame:
    """Two weeks and two models, of which the second is better; a part is labelled."""
    rows = []
    for day, model, num_right, num_wrong, num_unlabelled in (
        (16, "m 1", 6, 4, 5),
        (22, "m 1", 3, 1, 0),  # A Sunday: the same week.
        (23, "m 1", 0, 2, 0),
        (24, "m 2", 9, 1, 2),
    ):
        labels = ["bird"] * num_right + ["drone"] * num_wrong + [None] * num_unlabelled
        time = f"2026-11-{day}T23:59:59+00:00"
        rows += [(time, model, True, "bird", label) for label in labels]
    rows += [("2026-11-16T00:00:00+00:00", "m 1", False, "bird", "drone")]
    rows += [("2026-11-30T00:00:00+00:00", "m 2", True, "bird", None)]
    return pd.DataFrame(rows, columns=["time", "model", "sampled", "answer", "label"])


def test_weeks_models_and_the_sample_are_counted_apart() -> None:
    table = accuracy_by_week(answers())
    keys = [tuple(row) for row in table[["week", "model", "kept_as"]].to_numpy()]
    assert keys == [
        ("2026-11-16", "m 1", SAMPLE),
        ("2026-11-16", "m 1", CHOSEN),
        ("2026-11-23", "m 1", SAMPLE),
        ("2026-11-23", "m 2", SAMPLE),
    ]
    assert table["images"].tolist() == [19, 1, 2, 12]
    assert table["labelled"].tolist() == [14, 1, 2, 10]
    np.testing.assert_allclose(table["accuracy"], [9 / 14, 0, 0, 0.9])
    assert (table["low"][0], table["high"][0]) == pytest.approx(wilson(9 / 14, 14))


def test_nothing_labelled_gives_an_empty_table_and_the_figure_has_a_line_per_part() -> None:
    assert accuracy_by_week(answers().assign(label=None)).empty
    figure = plots.served_accuracy(accuracy_by_week(answers().assign(model="$x_$")))
    assert len(figure.axes[0].containers) == 2


def test_copies_have_the_label_of_the_image_that_they_are_copies_of() -> None:
    bird, drone = CLASSES[0], CLASSES[1]
    # The larger of two near duplicates is kept, and has the last word.
    small, large = near_pair(f"{bird}/small.jpg", f"{drone}/large.jpg", (800, 600))
    copy = replace(small, path=f"{bird}/z.jpg", md5="copy of small")
    first, within, across = (
        replace(record(path, 3), md5=path)
        for path in (f"{bird}/first.jpg", f"{bird}/within.jpg", f"{drone}/across.jpg")
    )
    dropped = replace(record(f"{bird}/dropped.jpg", 4), md5="dropped")
    unreadable = record(f"{bird}/notes.txt", 5)
    records = [first, within, across, dropped, unreadable, small, large, copy]
    options = {
        "near_duplicates": "drop",
        "decisions": {"dropped": by_hand_decision("dropped", "drop")},
    }
    labels = labels_by_md5(assign_verdicts(records, "first", 56, **options))  # type: ignore[arg-type]
    copies = {one.md5: bird for one in (first, within, across)}
    assert labels == copies | {one.md5: drone for one in (small, large, copy)}
    # With this policy nothing tells which of the two classes is right.
    unclear = labels_by_md5(assign_verdicts(records, "drop-all", 56, **options))  # type: ignore[arg-type]
    assert labels.keys() - unclear.keys() == copies.keys()
