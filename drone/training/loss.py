"""The training loss: cross-entropy, and by kind alone where the class cannot be seen."""

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from drone.labels import BIRD, tells_drones


def drone_classes(classes: Sequence[str], device: torch.device) -> Tensor | None:
    """Returns which classes are drones, (K,) bool; None if they are not both birds and drones."""
    if not tells_drones(classes):
        return None
    return torch.tensor([name != BIRD for name in classes], device=device)


def losses(
    logits_NK: Tensor, labels_N: Tensor, far_N: Tensor, is_drone_K: Tensor | None, smoothing: float
) -> Tensor:
    """Returns the cross-entropy of each view, (N,).

    Of an object far away only the kind can be seen: a view of it is right if its probabilities of
    the label's kind, bird or drone, add up to 1.

    Args:
        logits_NK: Logits of the classes.
        labels_N: Class indices.
        far_N: Which views show their objects far away, bool, on the processor.
        is_drone_K: Which classes are drones; None takes all views by their classes.
        smoothing: Label smoothing.
    """
    # Not by the weight argument, which would weigh the smoothed targets' classes instead.
    losses_N = functional.cross_entropy(
        logits_NK, labels_N, label_smoothing=smoothing, reduction="none"
    )
    if is_drone_K is None or not far_N.any():
        return losses_N
    kinds = [logits_NK.masked_fill(mask_K, -torch.inf) for mask_K in (is_drone_K, ~is_drone_K)]
    logits_N2 = torch.stack([kind_NK.logsumexp(dim=1) for kind_NK in kinds], dim=1)
    by_kind_N = functional.cross_entropy(
        logits_N2, is_drone_K[labels_N].long(), label_smoothing=smoothing, reduction="none"
    )
    return torch.where(far_N.to(labels_N.device), by_kind_N, losses_N)
