"""The figure of the answers for a clip or a track over time."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drone.inference.consensus import Consensus, Timeline, running_consensus
from drone.names import printable
from drone.serving.predictor import ModelInfo

matplotlib.use("Agg")  # Servers have no display.

_MAX_NAME = 30
"""Characters of a class name; a longer one would cover the plot."""


def answers_over_time(
    timeline: Timeline, consensus: Consensus, info: ModelInfo, title: str = ""
) -> Figure:
    """Plots class probabilities and known scores by seconds.

    Points are frames, lines the consensus of the frames until then. Dashed lines are the model's
    thresholds, and a green line is when the class became sure.

    Args:
        timeline: What the model says of the frames.
        consensus: Its consensus.
        info: The model's description.
        title: Name of the clip or track; may hold anything.
    """
    figure = Figure(figsize=(9, 5))
    probabilities, known = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    times_s, frames, running = timeline.times_s, timeline.outputs, running_consensus(timeline)
    for index, name in enumerate(info.classes.short_names):
        probabilities.plot(times_s, frames.probs_NK[:, index], f"C{index}.", alpha=0.35, ms=4)
        shown = printable(name)[:_MAX_NAME]
        probabilities.plot(times_s, running.probs_NK[:, index], f"C{index}", label=shown)
    known.plot(times_s, frames.known_N, ".", color="gray", alpha=0.35, ms=4)
    known.plot(times_s, running.known_N, color="black", label="known score")
    _finish(probabilities, "unsure below", info.unsure_below, consensus.by_class.sure_from_s)
    _finish(known, "none of these below", info.known_above, consensus.by_class.sure_from_s)
    probabilities.set_title(_sure(consensus), loc="right", fontsize=9)
    # A file's name is no formula, whatever it contains.
    probabilities.set_title(printable(title), loc="left", fontsize=9, parse_math=False)
    probabilities.set_ylabel("probability")
    known.set(ylabel="known score", xlabel="seconds")
    figure.tight_layout()
    return figure


def _sure(consensus: Consensus) -> str:
    agreements = {"class": consensus.by_class, "kind": consensus.by_kind}
    return "; ".join(
        f"{name} not sure"
        if agreement.sure_from_s is None
        else f"{name} sure from {agreement.sure_from_s:.1f} s"
        for name, agreement in agreements.items()
        if agreement is not None
    )


def _finish(axes: Axes, label: str, threshold: float, sure_from_s: float | None) -> None:
    """Adds a threshold, the time from which the answer was sure, the grid and the legend."""
    axes.axhline(threshold, color="gray", lw=1, ls="--", label=label)
    if sure_from_s is not None:
        axes.axvline(sure_from_s, color="tab:green", lw=1.5)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    # Beside the plot: inside it would cover points.
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
