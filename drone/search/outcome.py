"""How a trial stands after an epoch."""

from drone.training.config import Select, epoch_rank
from drone.training.context import History


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
