"""The figure of a learning curve."""

import io

import matplotlib
from matplotlib.figure import Figure

from drone.curation.learning_curve import LearningCurve
from drone.data import embed

matplotlib.use("Agg")  # Servers have no display.


def learning_curve(curve: LearningCurve) -> Figure:
    """Plots accuracy by images per class, with 95 % intervals; hollow points are extrapolated."""
    figure = Figure(figsize=(6.5, 3.6))
    axes = figure.add_subplot()
    for measured, colour, label in (
        (True, "tab:blue", "measured"),
        (False, "tab:gray", "extrapolated"),
    ):
        points = [point for point in curve.points if point.measured == measured]
        accuracies = [point.accuracy for point in points]
        axes.errorbar(
            [point.images_per_class for point in points],
            [accuracy.value for accuracy in accuracies],
            yerr=[
                [accuracy.value - accuracy.low for accuracy in accuracies],
                [accuracy.high - accuracy.value for accuracy in accuracies],
            ],
            fmt="o-" if measured else "o--",
            mfc=colour if measured else "white",
            color=colour,
            capsize=3,
            label=label,
        )
    axes.set(xlabel="images per class", ylabel="accuracy of a linear probe")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    return figure


def data_uri(figure: Figure) -> str:
    """Returns a figure as the URI of a PNG, for a page in one file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return embed.data_uri(buffer.getvalue())
