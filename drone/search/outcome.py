"""How a trial stands after an epoch: its score, and whether it makes sense to go on."""

import math
from collections.abc import Mapping
from typing import Any

from drone.training.config import Select, epoch_rank
from drone.training.context import History

_DIVERGED = 3.0
"""A loss this many times that of guessing has left for good."""

_COLLAPSED_EPOCHS = 2
"""Evaluations in a row in which one class is the answer to everything."""


def objective(history: History, select: Select) -> float:
    """Validation macro F1 of the epoch whose weights would be kept; 0 before the first.

    Args:
        history: the epochs so far.
        select: what chooses that epoch, as in TrainConfig.
    """
    if not history:
        return 0.0
    figures = [
        (entry["metrics"]["validation/macro_f1"], entry["metrics"]["validation/loss"])
        for entry in history
    ]
    return float(max(figures, key=lambda pair: epoch_rank(pair[0], pair[1], select))[0])


def reason_to_end(history: History, num_classes: int, grace_epochs: float) -> str | None:
    """Why a trial should end although nothing failed; None if it should go on.

    Args:
        history: the epochs so far.
        num_classes: K.
        grace_epochs: of the head alone and of the warm-up, in which little can be said.
    """
    if not history:
        return None
    metrics = history[-1]["metrics"]
    losses = (metrics["train/loss"], metrics["validation/loss"])
    if not all(math.isfinite(loss) for loss in losses):
        return "not finite: the loss is no number"
    if metrics["validation/loss"] > _DIVERGED * math.log(num_classes):
        return (
            f"diverged: a validation loss of {metrics['validation/loss']:.2f}, where guessing "
            f"has {math.log(num_classes):.2f}"
        )
    judged = [entry for entry in history if entry["epoch"] > grace_epochs][-_COLLAPSED_EPOCHS:]
    if len(judged) == _COLLAPSED_EPOCHS and all(_one_answer(entry) for entry in judged):
        return "collapsed: one class is the answer to every picture"
    return None


def _one_answer(entry: Mapping[str, Any]) -> bool:
    recalls = [
        value for name, value in entry["metrics"].items() if name.startswith("validation/recall_")
    ]
    return sorted(recalls) == [0.0] * (len(recalls) - 1) + [1.0]
