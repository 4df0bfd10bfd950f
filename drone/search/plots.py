"""Figures of a study that Optuna does not draw."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from drone.search.study import TrialRecord

_COLOURS = {"finished": "tab:blue", "pruned": "tab:gray", "ended": "tab:red", "failed": "tab:red"}


def learning_curves(records: Sequence[TrialRecord], best: int) -> Figure:
    """Validation macro F1 by epoch, a line for each trial; a cross where it was stopped.

    Args:
        records: of the study.
        best: number of the trial to draw thick.
    """
    figure = Figure(figsize=(9, 4.2))
    axes = figure.add_subplot()
    for record in records:
        if not record.history:
            continue
        epochs = [entry["epoch"] for entry in record.history]
        scores = [entry["metrics"]["validation/macro_f1"] for entry in record.history]
        colour, chosen = _COLOURS.get(record.state, "tab:gray"), record.number == best
        axes.plot(
            epochs,
            scores,
            color="tab:green" if chosen else colour,
            lw=2.5 if chosen else 0.9,
            alpha=1.0 if chosen else 0.6,
            zorder=3 if chosen else 2,
        )
        if record.state != "finished":
            axes.plot(epochs[-1], scores[-1], "x", color=colour, ms=6)
    for state, colour in (("finished", "tab:blue"), ("pruned", "tab:gray"), ("ended", "tab:red")):
        axes.plot([], [], color=colour, label=state)
    axes.plot([], [], color="tab:green", lw=2.5, label=f"trial {best}, the best")
    axes.set(xlabel="epoch", ylabel="macro F1 on validation", title="Learning curves")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    return figure
