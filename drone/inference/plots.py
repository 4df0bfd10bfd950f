"""The figure of the answers for a clip or a track over time."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from drone.inference.consensus import Consensus, Timeline, running_consensus
from drone.labels import short_names
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
    thresholds, and a green line is when the answer became sure.

    Args:
        timeline: What the model says of the frames.
        consensus: Its consensus.
        info: The model's description.
        title: Name of the clip or track; may hold anything.
    """
    figure = Figure(figsize=(9, 5))
    probabilities, known = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    running = running_consensus(timeline)
    names = [printable(name)[:_MAX_NAME] for name in short_names(info.classes)]
    for index, name in enumerate(names):
        _series(probabilities, timeline, timeline.outputs.probs_NK[:, index],
                running.probs_NK[:, index], f"C{index}", name)  # fmt: skip
    _series(known, timeline, timeline.outputs.known_N, running.known_N, "0.35", "known score")
    probabilities.axhline(info.unsure_below, color="gray", lw=1, ls="--", label="unsure below")
    known.axhline(info.known_above, color="gray", lw=1, ls="--", label="none of these below")
    if consensus.sure_from_s is not None:
        for axes in (probabilities, known):
            axes.axvline(consensus.sure_from_s, color="tab:green", lw=1.5)
        probabilities.set_title(f"sure from {consensus.sure_from_s:.1f} s", loc="right", fontsize=9)
    probabilities.set(ylabel="probability", ylim=(-0.02, 1.02))
    # A file's name is no formula, whatever it contains.
    probabilities.set_title(printable(title), loc="left", fontsize=9, parse_math=False)
    known.set(ylabel="known score", xlabel="seconds", ylim=(-0.02, 1.02))
    for axes in (probabilities, known):
        axes.grid(alpha=0.3)
        _legend(axes)
    figure.tight_layout()
    return figure


def _series(
    axes: Axes,
    timeline: Timeline,
    values_T: NDArray[np.float32],
    running_T: NDArray[np.float32],
    colour: str,
    name: str,
) -> None:
    axes.plot(timeline.times_s, values_T, ".", color=colour, alpha=0.35, ms=4)
    axes.plot(timeline.times_s, running_T, color=colour, label=name)


def _legend(axes: Axes) -> None:
    # Beside the plot: inside it would cover points.
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
