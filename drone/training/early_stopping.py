"""Early stopping: whether a run is still worth its time, judged from its evaluations."""

import math
from collections.abc import Mapping
from typing import Any

from drone.errors import TrainingError
from drone.training.best_epoch import History
from drone.training.config import TrainConfig

_DIVERGED_RATIO = 3.0
"""A validation loss this many times that of guessing does not recover."""


def reason_to_stop(
    history: History, num_classes: int, grace_epochs: float, patience: int = 2
) -> str | None:
    """Why a run should stop although nothing failed; None if it should continue.

    Args:
        history: The epochs so far.
        num_classes: K.
        grace_epochs: Head-only and warm-up epochs, which say little yet.
        patience: Consecutive evaluations in which a single class is predicted for every image.
    """
    if not history:
        return None
    metrics = history[-1]["metrics"]
    losses = (metrics["train/loss"], metrics["validation/loss"])
    if not all(math.isfinite(loss) for loss in losses):
        return "not finite: the loss is NaN or infinite"
    # No grace period: warm-up explains a loss like that of guessing, not three times that.
    if metrics["validation/loss"] > _DIVERGED_RATIO * math.log(num_classes):
        return (
            f"diverged: the validation loss is {metrics['validation/loss']:.2f}, guessing gives "
            f"{math.log(num_classes):.2f}"
        )
    judged = [entry for entry in history if entry["epoch"] > grace_epochs][-patience:]
    if len(judged) == patience and all(_predicts_one_class(entry) for entry in judged):
        return "collapsed: a single class is predicted for every image"
    return None


def _predicts_one_class(entry: Mapping[str, Any]) -> bool:
    metrics = entry["metrics"]
    # Rightly, where images of one class are held out.
    return bool(metrics["validation/predicted_classes"] == 1 and metrics["validation/accuracy"] < 1)


def worse_than_start(history: History, head_only_epochs: float, patience: int) -> str | None:
    """Whether a run has been worse than at its start for some consecutive evaluations, and how.

    The start is the last epoch in which only the head was trained, at least the first: what the
    head achieves on the backbone as it is. Training further blocks must not lose that.
    """
    start_epoch = max(1, math.floor(head_only_epochs))
    scores = {entry["epoch"]: entry["metrics"]["validation/macro_f1"] for entry in history}
    later = [scores[epoch] for epoch in sorted(scores) if epoch > start_epoch][-patience:]
    start = scores.get(start_epoch)
    if start is None or len(later) < patience or max(later) >= start:
        return None
    return (
        f"worse than at its start: validation macro F1 is {later[-1]:.3f}, it was {start:.3f} "
        f"after epoch {start_epoch}"
    )


class EarlyStopping:
    """Stops a run early, as TrainConfig.early_stopping_patience says."""

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        """Watches a run of this configuration."""
        self._patience, self._num_classes = config.early_stopping_patience, num_classes
        optim = config.optim
        head_only = optim.head_only_epochs
        # As in `schedule.learning_rates`: a run shorter than this phase skips it.
        self._head_only_epochs = head_only if head_only < config.epochs else 0.0
        self._grace_epochs = self._head_only_epochs + optim.warmup_epochs

    def check(self, history: History) -> None:
        """Judges the evaluations so far; on every rank alike.

        Raises:
            TrainingError: The run should stop; the message gives the reason.
        """
        patience = self._patience
        if not patience:
            return
        reason = reason_to_stop(history, self._num_classes, self._grace_epochs, patience)
        reason = reason or worse_than_start(history, self._head_only_epochs, patience)
        if reason:
            raise TrainingError(
                f"Early stopping ended the run after epoch {history[-1]['epoch']}: {reason}. "
                f"Start another with lower --optim.lr-head and --optim.resizer-lr-ratio, or with "
                f"--early-stopping-patience 0 to train to the last epoch."
            )
