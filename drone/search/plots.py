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
from drone.search.study import TrialRecord

# A job has no display.
matplotlib.use("Agg")

_COLOURS = {
    "finished": "tab:blue",
    "pruned": "tab:gray",
    "stopped": "tab:red",
    "failed": "tab:red",
}


def learning_curves(records: Sequence[TrialRecord], best: int) -> Figure:
    """Plots validation macro F1 by epoch, a line per trial; a cross where a trial ended early.

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
    axes.set(xlabel="epoch", ylabel="macro F1 on validation", title="Learning curves")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    return figure


def _draw_curve(axes: Any, record: TrialRecord, highlighted: bool) -> None:
    epochs = [entry["epoch"] for entry in record.history]
    scores = [entry["metrics"]["validation/macro_f1"] for entry in record.history]
    colour = _COLOURS.get(record.state, "tab:gray")
    axes.plot(
        epochs,
        scores,
        color="tab:green" if highlighted else colour,
        lw=2.5 if highlighted else 0.9,
        alpha=1.0 if highlighted else 0.6,
        zorder=3 if highlighted else 2,
    )
    if record.state != "finished":
        axes.plot(epochs[-1], scores[-1], "x", color=colour, ms=6)


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
