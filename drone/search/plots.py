"""Figures of a study."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from drone.search.sampler import Sampler
from drone.search.study import TrialRecord, mean_history

# A job has no display.
matplotlib.use("Agg")

_COLOURS = {
    "finished": "tab:blue",
    "pruned": "tab:gray",
    "stopped": "tab:red",
    "failed": "tab:red",
}


def learning_curves(records: Sequence[TrialRecord], best: int) -> Figure:
    """Plots the validation loss by epoch, averaged over folds; a cross where a trial ended early.

    Args:
        records: Trials of the study.
        best: Number of the trial that is highlighted.
    """
    figure = Figure(figsize=(9, 4.2))
    axes = figure.add_subplot()
    for record in records:
        if record.history:
            _draw_curve(axes, record, record.number == best)
    for state in ("finished", "pruned", "stopped"):
        # Empty lines, for the legend.
        axes.plot([], [], color=_COLOURS[state], label=state)
    axes.plot([], [], color="tab:green", lw=2.5, label=f"trial {best}, the best")
    axes.set(xlabel="epoch", ylabel="loss on held-out images", title="Learning curves")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    return figure


def _draw_curve(axes: Any, record: TrialRecord, highlighted: bool) -> None:
    means = mean_history(record.history)
    epochs = [entry["epoch"] for entry in means]
    losses = [entry["metrics"]["validation/loss"] for entry in means]
    colour = _COLOURS.get(record.state, "tab:gray")
    axes.plot(
        epochs,
        losses,
        color="tab:green" if highlighted else colour,
        lw=2.5 if highlighted else 0.9,
        alpha=1.0 if highlighted else 0.6,
        zorder=3 if highlighted else 2,
    )
    if record.state != "finished":
        axes.plot(epochs[-1], losses[-1], "x", color=colour, ms=6)


def race(records: Sequence[TrialRecord], epochs: int) -> Figure:
    """Plots how far each trial came, in folds, and which trial it was worse than.

    Args:
        records: Trials of the study.
        epochs: Epochs of a fold.
    """
    figure = Figure(figsize=(9, max(2.5, 0.22 * len(records) + 1)))
    axes = figure.add_subplot()
    lengths = {record.number: len(record.history) / epochs for record in records}
    for record in records:
        length, colour = lengths[record.number], _COLOURS.get(record.state, "tab:gray")
        axes.barh(record.number, length, color=colour, height=0.7)
        text = "" if record.score is None else f" {record.score:.3f}"
        if record.pruned_by is not None:
            text += f", behind {record.pruned_by}"
        axes.text(length, record.number, text, va="center", fontsize=7)
    for state in dict.fromkeys(record.state for record in records):
        axes.barh(0, 0, color=_COLOURS.get(state, "tab:gray"), label=state)
    num_folds = max((record.num_folds for record in records), default=1)
    axes.set(xlabel="folds", ylabel="trial", title="The race", xlim=(0, 1.25 * num_folds))
    axes.set_xticks(range(num_folds + 1))
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure


def draw_optuna_plots(sampler: Sampler, folder: Path) -> list[Path]:
    """Draws Optuna's plots of a study as PNG files, except those that need more trials.

    Returns:
        The files, in the order to show them.
    """
    import optuna.visualization.matplotlib as visualization

    plots: dict[str, Callable[..., Any]] = {
        "optimization_history": visualization.plot_optimization_history,
        "parameter_importances": visualization.plot_param_importances,
        "parallel_coordinates": visualization.plot_parallel_coordinate,
        "slices": visualization.plot_slice,
    }
    files = []
    for name, plot in plots.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The interface is marked experimental.
            try:
                axes = plot(sampler.study)
            # What Optuna raises for too few trials, or for equal scores.
            except (RuntimeError, ValueError, ZeroDivisionError):
                continue
            figure = np.ravel(axes)[0].figure
            if name == "slices":
                figure.set_size_inches(3.2 * len(np.ravel(axes)), 3.6)
            target = folder / f"{name}.png"
            figure.savefig(target, dpi=110, bbox_inches="tight", facecolor="white")
            # pyplot keeps figures until they are closed.
            pyplot.close(figure)
        files.append(target)
    return files
