"""Which epoch is the best one, by its validation metrics."""

from typing import Any, Literal

History = list[dict[str, Any]]
"""One entry per completed epoch: "epoch" (from 1), "time_ms" and "metrics" by name."""

BestEpochBy = Literal["loss", "macro_f1"]


def epoch_rank(macro_f1: float, loss: float, by: BestEpochBy) -> tuple[float, float]:
    """A sort key for epochs: the best epoch has the highest rank; the other metric breaks ties."""
    return (-loss, macro_f1) if by == "loss" else (macro_f1, -loss)


def best_epoch(history: History, by: BestEpochBy) -> dict[str, Any]:
    """The entry of the best epoch, the one whose weights are saved.

    Args:
        history: The epochs so far, at least one.
        by: The validation metric that selects, as in TrainConfig.
    """

    def rank(entry: dict[str, Any]) -> tuple[float, float]:
        metrics = entry["metrics"]
        if "validation/loss" not in metrics:  # Nothing tells the epochs apart: the last counts.
            return entry["epoch"], 0.0
        return epoch_rank(metrics["validation/macro_f1"], metrics["validation/loss"], by)

    # Of equal epochs max() returns the first, the one whose weights the loop saved.
    return max(history, key=rank)
