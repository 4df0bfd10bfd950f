"""Whether it makes sense that a run goes on, told from its evaluations."""

import math
from collections.abc import Mapping
from typing import Any

from drone.errors import TrainingError
from drone.training.config import TrainConfig
from drone.training.context import History

_DIVERGED = 3.0
"""A loss this many times that of guessing has left for good."""


def reason_to_end(
    history: History, num_classes: int, grace_epochs: float, patience: int = 2
) -> str | None:
    """Why a run should end although nothing failed; None if it should go on.

    Args:
        history: the epochs so far.
        num_classes: K.
        grace_epochs: of the head alone and of the warm-up, in which little can be said.
        patience: evaluations in a row in which one class is the answer to everything.
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
    judged = [entry for entry in history if entry["epoch"] > grace_epochs][-patience:]
    if len(judged) == patience and all(_one_answer(entry) for entry in judged):
        return "collapsed: one class is the answer to every picture"
    return None


def _one_answer(entry: Mapping[str, Any]) -> bool:
    recalls = [
        value for name, value in entry["metrics"].items() if name.startswith("validation/recall_")
    ]
    return sorted(recalls) == [0.0] * (len(recalls) - 1) + [1.0]


def fallen_below_start(history: History, head_epochs: float, patience: int) -> str | None:
    """Whether a run has been worse than it began for some evaluations in a row, and how much.

    It begins with the last epoch in which only the head learnt, at least the first: what the head
    makes of the backbone as it is. What learns later must not take from that.
    """
    start_epoch = max(1, math.floor(head_epochs))
    figures = {entry["epoch"]: entry["metrics"]["validation/macro_f1"] for entry in history}
    later = [figures[epoch] for epoch in sorted(figures) if epoch > start_epoch][-patience:]
    start = figures.get(start_epoch)
    if start is None or len(later) < patience or max(later) >= start:
        return None
    return (
        f"below its start: macro F1 {later[-1]:.3f} on validation, {start:.3f} after epoch "
        f"{start_epoch}"
    )


class Watchdog:
    """Stops a run that has no future."""

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        """Watches as configured; see TrainConfig.watchdog."""
        self._patience, self._num_classes = config.watchdog, num_classes
        optim = config.optim
        self._head_epochs = optim.head_epochs if optim.head_epochs < config.epochs else 0.0
        self._grace_epochs = self._head_epochs + optim.warmup_epochs

    def check(self, history: History) -> None:
        """Looks at the evaluations so far; on every rank the same.

        Raises:
            TrainingError: the run should not go on; it names the reason.
        """
        if not self._patience:
            return
        patience = self._patience
        reason = reason_to_end(history, self._num_classes, self._grace_epochs, patience)
        reason = reason or fallen_below_start(history, self._head_epochs, patience)
        if reason:
            raise TrainingError(
                f"The watchdog stopped the run after epoch {history[-1]['epoch']}. {reason}. "
                f"Start another with lower --optim.lr-head and --optim.resizer-share, or with "
                f"--watchdog 0 to let it run to its end."
            )
