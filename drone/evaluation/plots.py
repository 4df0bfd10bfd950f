"""Figures of the evaluation report."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from drone.evaluation.conditions import Card
from drone.evaluation.metrics import Predictions, Proportion
from drone.evaluation.operating_point import OperatingPoint, per_1000
from drone.labels import ClassSet
from drone.names import printable

matplotlib.use("Agg")  # Servers have no display.

_MAX_NUMBERED = 12
"""Classes of a confusion matrix with numbers in its cells."""

_MAX_NAME = 30
"""Characters of a class name; longer ones would leave no room for the matrix."""


def save(figure: Figure, target: Path) -> None:
    """Saves a figure as PNG."""
    figure.savefig(target, dpi=110, bbox_inches="tight", facecolor="white")


def confusion(matrix_KK: NDArray[np.int64], classes: ClassSet) -> Figure:
    """Plots the confusion matrix as counts and with normalised rows, side by side.

    Of more than a dozen classes it shows shares alone, as colours: numbers would not be legible.
    """
    if len(classes) > _MAX_NUMBERED:
        return _coloured_confusion(matrix_KK, classes)
    # Figure and not pyplot, which would keep every figure in memory until it is closed.
    figure = Figure(figsize=(10.5, 4.6))
    rows_K = matrix_KK.sum(axis=1, keepdims=True)
    shares_KK = matrix_KK / np.maximum(rows_K, 1)
    names = [printable(name)[:_MAX_NAME] for name in classes.short_names]
    for position, (title, values, form) in enumerate(
        [("Images", matrix_KK, "d"), ("Share of the true class", shares_KK, ".2f")], start=1
    ):
        axes = figure.add_subplot(1, 2, position)
        # Both are coloured by share, so that large classes do not outshine small ones.
        axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(*values.shape):
            dark = shares_KK[row, column] > 0.55
            axes.text(
                column,
                row,
                format(values[row, column], form),
                ha="center",
                va="center",
                color="white" if dark else "black",
            )
        # A class name is no formula, whatever it contains.
        axes.set_xticks(range(len(names)), names, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.tight_layout()
    return figure


def _coloured_confusion(matrix_KK: NDArray[np.int64], classes: ClassSet) -> Figure:
    count = len(classes)
    side = min(18.0, 5 + 0.16 * count)
    figure = Figure(figsize=(side + 1, side))
    axes = figure.add_subplot()
    shares_KK = matrix_KK / np.maximum(matrix_KK.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="share of the true class")
    names = [printable(name)[:_MAX_NAME] for name in classes.short_names]
    size = max(3.0, min(8.0, 60 * side / count / 5))
    axes.set_xticks(range(count), names, parse_math=False, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, parse_math=False, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    figure.tight_layout()
    return figure


def curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Plots loss, accuracy and macro F1 by epoch for train and validation.

    Args:
        history: One row per epoch, with columns such as "train/loss" and "validation/loss".
        best_epoch: Epoch to mark.
    """
    figure = Figure(figsize=(12, 3.4))
    for position, (name, title) in enumerate(
        [("loss", "Loss"), ("accuracy", "Accuracy"), ("macro_f1", "Macro F1")], start=1
    ):
        axes = figure.add_subplot(1, 3, position)
        for part, style in (("train", "--"), ("validation", "-")):
            if f"{part}/{name}" in history:
                axes.plot(history.index, history[f"{part}/{name}"], style, marker=".", label=part)
        axes.axvline(best_epoch, color="tab:green", lw=1, label=f"best epoch, {best_epoch}")
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    return figure


def conditions(card: Card) -> Figure:
    """Plots accuracy and drone recall by level, a panel per condition; other models are dashed."""
    names = card.conditions
    models = {"": card.rows, **card.beside}
    figure = Figure(figsize=(12, 2.6 * math.ceil(len(names) / 4)))
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(math.ceil(len(names) / 4), 4, position)
        for model, rows in models.items():
            shown = [row for row in rows if row.condition in ("", name)]
            style, suffix = ("--", f" of {model}") if model else ("-", "")
            levels = range(len(shown))
            accuracy = [row.accuracy.value for row in shown]
            axes.plot(levels, accuracy, style, color="tab:blue", label=f"accuracy{suffix}")
            recall = [row.drone_recall.value for row in shown if row.drone_recall]
            if recall:
                axes.plot(levels, recall, style, color="tab:red", label=f"drone recall{suffix}")
        labels = ["none" if row.level is None else f"{row.level:g}" for row in shown]
        axes.set_xticks(levels, labels, fontsize=7)
        axes.set(title=name, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    return figure


def operating_point(point: OperatingPoint) -> Figure:
    """Plots drone recall against false alarms per 1,000 birds, and per 1,000 negatives beside it.

    The bands are the 95 % intervals of both axes.
    """
    parts = {"birds": [alarms.birds for alarms in point.curve]}
    parts["negatives"] = [alarms.negatives for alarms in point.curve]
    shown = {name: part for name, part in parts.items() if part[0].support}
    recalls = [alarms.drones for alarms in point.curve]
    figure = Figure(figsize=(5 * max(len(shown), 1), 3.8))
    for position, (name, part) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(1, len(shown), position)
        _plot_curve(axes, [per_1000(item) for item in part], recalls)
        axes.set(xlabel=f"false alarms per 1,000 {name}", ylabel="drone recall", ylim=(0, 1.02))
        axes.set_title(f"{part[0].support} {name}, {recalls[0].support} drones", fontsize=10)
    figure.tight_layout()
    return figure


def _plot_curve(
    axes: Axes, false_alarms: Sequence[Proportion], recalls: Sequence[Proportion]
) -> None:
    # The upper edge of the band has the better end of both intervals, the lower edge the worse.
    left = [part.low for part in false_alarms]
    right = [part.high for part in false_alarms]
    axes.fill(
        [*left, *reversed(right)],
        [*(part.high for part in recalls), *(part.low for part in reversed(recalls))],
        color="tab:blue",
        alpha=0.2,
        lw=0,
    )
    values = [part.value for part in false_alarms]
    axes.plot(values, [part.value for part in recalls], ".-", color="tab:blue", ms=3)
    axes.grid(alpha=0.3)


def reliability(predictions: Predictions) -> Figure:
    """Plots the reliability diagram: accuracy against confidence, with the images per bin."""
    figure = Figure(figsize=(4.4, 3.6))
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, 11)
    bins = np.clip(np.digitize(predictions.confidence_N, edges) - 1, 0, 9)
    right_N = predictions.labels_N == predictions.predicted_N
    for number in np.unique(bins):
        inside = bins == number
        axes.bar(edges[number] + 0.05, right_N[inside].mean(), 0.09, color="tab:blue", alpha=0.75)
        axes.text(edges[number] + 0.05, 0.02, str(inside.sum()), ha="center", fontsize=7)
    axes.plot([0, 1], [0, 1], color="gray", lw=1, ls="--")
    axes.set(xlabel="confidence", ylabel="accuracy", title="Reliability", xlim=(0, 1), ylim=(0, 1))
    figure.tight_layout()
    return figure


def served_accuracy(by_week: pd.DataFrame) -> Figure:
    """Plots the accuracy of served answers by week, with intervals, a line for each model and part.

    Args:
        by_week: Result of `served.accuracy_by_week`.
    """
    figure = Figure(figsize=(9, 3.6))
    axes = figure.add_subplot()
    weeks = sorted(by_week["week"].unique())
    for number, ((model, kept_as), rows) in enumerate(by_week.groupby(["model", "kept_as"])):
        # Beside each other, so that intervals of one week can be told apart.
        positions = [weeks.index(week) + 0.06 * number for week in rows["week"]]
        below, above = rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]
        label = f"{printable(model)}, {kept_as}"
        axes.errorbar(positions, rows["accuracy"], [below, above], marker=".", label=label)
    axes.set_xticks(range(len(weeks)), weeks, rotation=30, fontsize=8)
    axes.set(ylim=(0, 1.02), ylabel="accuracy", xlabel="week from")
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=8, loc="lower left")
    for text in legend.get_texts():
        text.set_parse_math(False)  # A model's name is no formula.
    return figure
